"""Ctrl-C, sys.exit() and other threads, at moments that are hard to hit."""

import importlib.metadata
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skblab.agent.packets import HeldPacket
from skblab.errors import CallbackFailed, GuestLost
from skblab.event import Hit
from skblab.host import process
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec

CLOSES = 12
THREADS_S = 1.0
GONE_S = 5.0
LATEST_S = 0.004  # the end of a lab takes longer


@pytest.fixture(params=["real", "virtual"])
def spec(request: pytest.FixtureRequest, image: Image) -> LabSpec:
    return LabSpec(image=image, time=request.param)


@pytest.fixture
def virtual(image: Image) -> Iterator[Lab]:
    with LabSpec(image=image, time="virtual").start() as lab:
        yield lab


def pause(length_s: float) -> None:
    threading.Event().wait(length_s)


def side_by_side(*work: Callable[[], object]) -> None:
    """Call functions in a thread each; raise the first error."""
    errors = []

    def call(one: Callable[[], object]) -> None:
        try:
            one()
        except Exception as error:  # noqa: BLE001 - raised below
            errors.append(error)

    threads = [threading.Thread(target=call, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def ended(pid: int) -> bool:
    """Whether a process ends within GONE_S."""
    try:
        with os.fdopen(os.pidfd_open(pid)) as process:
            return bool(wait([process], GONE_S))
    except ProcessLookupError:
        return True


def press_ctrl_c(after_s: float) -> threading.Thread:
    def press() -> None:
        pause(after_s)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    return thread


def test_threads_get_the_sockets_that_they_ask_for(image: Image) -> None:
    with Lab(image=image) as lab:

        def open_sockets(kind: int) -> None:
            until_s = time.monotonic() + THREADS_S
            while time.monotonic() < until_s:
                with lab.socket(kind=kind) as one:
                    assert one.type == kind

        side_by_side(lambda: open_sockets(socket.SOCK_STREAM), lambda: open_sockets(socket.SOCK_DGRAM))


@pytest.mark.wall_clock
def test_ctrl_c_while_a_socket_is_asked_for(image: Image) -> None:
    def open_sockets() -> None:
        presses.append(press_ctrl_c(chance.uniform(0, 0.002)))
        while True:
            lab.socket(kind=socket.SOCK_STREAM).close()

    chance, presses = random.Random(7), list[threading.Thread]()
    with Lab(image=image) as lab:
        for _ in range(50):
            with pytest.raises(KeyboardInterrupt):
                open_sockets()
            with lab.socket(kind=socket.SOCK_DGRAM) as one:
                assert one.type == socket.SOCK_DGRAM


@pytest.mark.wall_clock
def test_ctrl_c_while_a_lab_ends(spec: LabSpec) -> None:
    def ends() -> None:
        with spec.start() as lab:
            labs.append(lab)
            kernels.append(lab.guest.pid)
            presses.append(press_ctrl_c(chance.uniform(0, LATEST_S)))
        presses[-1].join()
        pause(0.001)  # it may come only now

    chance, labs, kernels, presses = random.Random(3), list[Lab](), list[int](), list[threading.Thread]()
    for _ in range(CLOSES):
        with pytest.raises(KeyboardInterrupt):
            ends()
    left = [lab for lab, pid in zip(labs, kernels, strict=True) if not ended(pid)]
    assert len(left) <= 1  # Python itself may be interrupted between the block and __exit__()
    for lab in left:
        lab.close()
    assert [one.name for one in threading.enumerate() if one.name.startswith("skblab")] == []


def test_another_thread_closes_a_lab_whose_packets_are_edited(image: Image) -> None:
    with Lab(image=image) as lab, lab.rule("icmp_rcv = edit ip.tos=4", lambda _: pause(0.01)) as rule:
        lab.popen(["ping", "-c100", "-i0.002", "guest"], stdout=subprocess.DEVNULL)
        rule.wait(3)
        side_by_side(lab.close)


def test_a_policy_whose_end_is_interrupted_stops_nothing(virtual: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(**_: object) -> None:
        raise KeyboardInterrupt

    policy = virtual.on("icmp_rcv", "icmp", lambda _: None)
    with monkeypatch.context() as here:
        here.setattr(policy._armed, "disarm", interrupted)
        with pytest.raises(KeyboardInterrupt):
            policy.close()
    assert "1 received" in virtual.run(["ping", "-c1", "-W1", "guest"]).stdout


def test_ctrl_c_twice_in_a_callback(virtual: Lab) -> None:
    def report(_: Hit) -> None:
        for _signal in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        sum(range(100_000))

    def interrupted() -> None:
        with virtual.rule("icmp_rcv = trace", report):
            virtual.run(["ping", "-c1", "guest"])

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with virtual.rule("icmp_rcv = trace") as rule:
        virtual.run(["ping", "-c1", "guest"])
    assert rule.fired


def test_a_callback_that_calls_exit(spec: LabSpec) -> None:
    def ping() -> None:
        with lab.rule("icmp_rcv = trace", lambda _: sys.exit(3)):
            lab.run(["ping", "-c1", "guest"])

    with spec.start() as lab:
        with pytest.raises(CallbackFailed, match=r"SystemExit\(3\)"):
            ping()
        with lab.rule("icmp_rcv = trace") as rule:
            lab.run(["ping", "-c1", "guest"])
        assert rule.fired


def test_threads_run_commands_in_virtual_time(virtual: Lab) -> None:
    def echo(word: str) -> None:
        for _ in range(40):
            assert virtual.run(["echo", word]).stdout == f"{word}\n"

    side_by_side(*(lambda word=word: echo(word) for word in ("one", "two", "three")))


def test_a_command_after_one_that_was_left(virtual: Lab) -> None:
    with virtual.popen(["sleep", "100"]):
        pass
    assert virtual.run(["echo", "on"]).stdout == "on\n"


def test_a_policy_whose_packet_has_just_gone_has_not_failed(image: Image) -> None:
    verdicts = random.Random(1)

    def decide(_: HeldPacket) -> str:
        return verdicts.choice(["duplicate", "edit ip.tos=4"])

    with Lab(image=image) as lab:
        lab.popen(["ping", "-f", "guest"], stdout=subprocess.DEVNULL)
        for _ in range(100):
            with lab.on("icmp_rcv", "icmp[icmptype] == icmp-echo", decide) as policy:
                pause(0.002)
        assert policy.error is None


def test_a_command_that_is_killed_as_it_ends(image: Image) -> None:
    chance = random.Random(1)
    with Lab(image=image, root="host") as lab:
        for _ in range(60):
            with lab.guest.popen(["true"]) as command:
                pause(chance.uniform(0, 0.006))
                command.kill()
                assert command.wait() in {0, -signal.SIGKILL}


def test_what_a_command_said_before_a_timeout(image: Image) -> None:
    with Lab(image=image, root="host") as lab:
        command = lab.guest.popen(["sh", "-c", "echo a; sleep 0.5; echo b"], stdout=subprocess.PIPE)
        with pytest.raises(subprocess.TimeoutExpired):
            command.communicate(timeout=0.2)
        assert command.communicate()[0] == b"a\nb\n"


def test_a_lab_that_another_thread_closes_is_gone(image: Image) -> None:
    def trace() -> None:
        while True:
            with lab.trace(filter="icmp") as tracer:
                lab.agent.link_losses()
            tracer.trace()

    for _ in range(5):
        with Lab(image=image) as lab:
            closes = threading.Timer(0.05, lab.close)
            closes.start()
            with pytest.raises(GuestLost):
                trace()
            closes.join()


EARLY = """
import sys
class Interrupts:
    def find_spec(self, name, *_):
        if name == "skblab.cli.complaints":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupts())
from skblab.__main__ import main
sys.exit(main())
"""


def test_a_ctrl_c_while_python_imports_the_command_line() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="skblab")
    assert script.value == "skblab.__main__:main"
    done = process.run([sys.executable, "-c", EARLY], timeout_s=20)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "skblab: interrupted\n")


# A worker imports the main script first.
WORKERS = """
import os, signal
if __name__ == "__mp_main__":
    os.kill(os.getpid(), signal.SIGINT)
from skblab.spec import LabSpec
from skblab.sweep.cell import Scenario
from skblab.sweep.pool import Job, Local
from cells import empty
if __name__ == "__main__":
    scenario = Scenario(spec=LabSpec(time="virtual"), client=("true",))
    jobs = [Job(scenario, (), repeat) for repeat in range(3)]
    print(len([*Local(2, empty)(jobs)]))
"""


def test_a_ctrl_c_is_not_for_workers_that_begin(tmp_path: Path) -> None:
    (tmp_path / "sweep.py").write_text(WORKERS)
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    done = process.run([sys.executable, tmp_path / "sweep.py"], env=env, timeout_s=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "3\n", "")
