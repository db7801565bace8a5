"""A cell in a branch of a lab: its outcome is that of a cell in a lab of its own, to the byte; nothing stays behind."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.spec import LabSpec
from skblab.sweep import stem
from skblab.sweep.cell import CellOutcome, Scenario, run_cell
from support import eventually, eventually_nothing, open_files, remains

HTTP = "python3 -m http.server 80"
FETCH = ("curl", "-sf", "http://guest/etc/services")
LINGER_S = 2  # longer than this machine ever stands still
PING = ("ping", "-n", "-c3", "guest")

# A server of UDP with a thread, a child, a timer, open files and memory of its own: it answers with what it counts.
COUNTS = """
import mmap, os, random, signal, socket, threading, time
state = mmap.mmap(-1, 1 << 20)
journal = open("/tmp/journal", "w+")
def beat():
    while True:
        time.sleep(0.3); state[0] = (state[0] + 1) % 256
threading.Thread(target=beat, daemon=True).start()
ours, theirs = os.pipe()
if os.fork() == 0:
    while True:
        time.sleep(0.4); os.write(theirs, b"x")
signal.signal(signal.SIGALRM, lambda *_: state.__setitem__(1, state[1] + 1))
signal.setitimer(signal.ITIMER_REAL, 0.25, 0.25)
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("", 7777))
time.sleep(1)
while True:
    said, sender = one.recvfrom(100)
    journal.write(said.decode()); journal.flush()
    counted = state[:2], len(os.read(ours, 100)), os.fstat(journal.fileno()).st_size
    words = said, *counted, random.random(), os.urandom(8), time.time()
    one.sendto(repr(words).encode(), sender)
"""
ASKS = """
import socket, time
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); one.settimeout(2)
for number in range(5):
    one.sendto(b"%d" % number, ("guest", 7777))
    try: print(one.recv(1000), time.time())
    except TimeoutError: print("lost", time.time())
    time.sleep(0.7)
"""
SPINS = ("sh", "-c", "while :; do :; done")
CRASH = ("sh", "-c", "ping -c1 guest >/dev/null; echo c >/proc/sysrq-trigger; sleep 1")


@pytest.fixture(autouse=True)
def nothing_stays() -> Iterator[None]:
    before = remains()
    yield
    stem.drop()
    assert eventually_nothing(before) == []


def stems() -> list[Lab]:
    """Return those that are kept."""
    kept = stem._here.kept or stem._here.lingers
    return [one.stem for one in kept.known.values() if one.stem] if kept else []


def in_branches(scenario: Scenario, *faults: list[str]) -> list[CellOutcome]:
    """Run a scenario in branches of one lab: without a fault, and with each of some."""
    with stem.kept():
        run_cell(scenario)
        assert not stems()
        outcomes = [run_cell(scenario, rules) for rules in ([], *faults)]
        (grown,) = stems()
        ours, theirs = open_files(os.getpid()).keys(), len(open_files(grown.namespaces.pid))
        outcomes.append(run_cell(scenario))
        assert open_files(os.getpid()).keys() <= ours
        assert len(open_files(grown.namespaces.pid)) == theirs
    return outcomes


def check(scenario: Scenario, *faults: list[str]) -> list[CellOutcome]:
    """Compare with labs of their own; return the outcomes."""
    alone = [run_cell(scenario, rules) for rules in ([], *faults, [])]
    assert in_branches(scenario, *faults) == alone
    return alone


def test_on_every_series(every_image: Image) -> None:
    spec = LabSpec(image=every_image, time="virtual", seed=4)
    _, lost, *_ = check(Scenario(spec=spec, client=PING), ["ip_rcv = drop @3"], ["ip_rcv = corrupt 3 @4"])
    assert (lost.status, "33.3333% packet loss" in lost.stdout) == (0, True)


@pytest.mark.parametrize("userspace", ["ptrace", "seccomp"])
def test_a_server_of_tcp(userspace: str) -> None:
    spec = LabSpec(image=find_image("7.3"), time="virtual", commands=[HTTP], userspace=userspace, seed=1)
    faults = [["ip_rcv = drop @4"], ["ip_rcv = delay 300ms @7"], ["tcp_v4_rcv = reset @3"], ["ip_rcv = drop @4-4000"]]
    outcomes = check(Scenario(spec=spec, client=FETCH), *faults)
    assert outcomes[0].stdout == Path("/etc/services").read_text()
    assert outcomes[1].counters["host Tcp RetransSegs"] == 1


def test_threads_children_timers_files_and_nodes(every_image: Image) -> None:
    commands = [f"udp:exec python3 -c '{COUNTS}'", f"third:{HTTP}"]
    spec = LabSpec(image=every_image, time="virtual", commands=commands, nodes=["third"], seed=5)
    scenario = Scenario(spec=spec, client=("python3", "-c", ASKS), files=("/etc/hostname", "/tmp/journal"), traced=True)
    first, lost, *_ = check(scenario, ["ip_rcv = drop @3"])
    assert (first.stdout.count("lost"), lost.stdout.count("lost")) == (0, 1)
    assert first.functions
    assert check(Scenario(spec=spec, client=("curl", "-sf", "http://third/etc/hostname")))[0].status == 0


@pytest.mark.complains("panic")
@pytest.mark.parametrize(("client", "end"), [(CRASH, "died"), (("sleep", "1d"), "hung"), (SPINS, "hung")])
def test_an_end_of_any_kind(image: Image, client: tuple[str, ...], end: str) -> None:
    """The end of one branch is nothing to its stem, and to the next branch."""
    spec = LabSpec(image=image, time="virtual", commands=[HTTP])
    good, bad = Scenario(spec=spec, client=FETCH), Scenario(spec=spec, client=client, limit_s=1)
    alone = run_cell(bad)
    assert alone.end == end
    with stem.kept():
        first, *others = [run_cell(one) for one in (good, bad, good)]
        assert others == [alone, first]
        assert len(stems()) == 1


@pytest.mark.parametrize("series", ["6.12", "7.3"])
def test_a_kernel_that_looks_for_its_own_mistakes(series: str) -> None:
    spec = LabSpec(image=find_image(series, "kasan"), time="virtual", memory_mib=256, commands=[HTTP])
    for outcome in check(Scenario(spec=spec, client=FETCH), ["ip_rcv = drop @6"]):
        assert (outcome.status, outcome.complaints) == (0, ())


def test_a_stem_that_is_killed(image: Image) -> None:
    scenario = Scenario(spec=LabSpec(image=image, time="virtual"), client=PING)
    with stem.kept():
        first = run_cell(scenario)
        run_cell(scenario)
        for which in ("guest", "namespaces"):
            (grown,) = stems()
            os.kill(getattr(grown, which).pid, 9)
            assert run_cell(scenario) == first
            assert run_cell(scenario) == first
            assert stems() not in ([], [grown])


def test_what_reads_this_machine_is_not_branched(
    image: Image, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the first branch is not like the first cell, no other is: here, because a file has changed."""
    changes = tmp_path / "changes"
    changes.write_text("1")
    scenario = Scenario(spec=LabSpec(image=image, time="virtual"), client=("cat", str(changes)))
    with stem.kept():
        assert run_cell(scenario).stdout == "1"
        changes.write_text("2")
        assert [run_cell(scenario).stdout for _ in range(3)] == ["2"] * 3
        assert stems() == []
    assert [one.message for one in caplog.records] == [
        "a cell in a branch of its lab is another: every cell boots a guest of its own"
    ]


def test_a_few_stems(image: Image) -> None:
    scenarios = [Scenario(spec=LabSpec(image=image, time="virtual", seed=seed), client=PING) for seed in range(6)]
    alone = [run_cell(one) for one in scenarios]
    with stem.kept():
        for _ in range(3):
            assert [run_cell(one) for one in scenarios] == alone
        assert len(stems()) == stem.MOST_STEMS


def test_a_thread_that_comes_back_soon(image: Image) -> None:
    """A worker of a cluster runs batch after batch."""
    scenario = Scenario(spec=LabSpec(image=image, time="virtual"), client=PING)
    with stem.kept(LINGER_S):
        first = [run_cell(scenario) for _ in range(3)]
        (grown,) = stems()
    with stem.kept(LINGER_S):
        assert run_cell(scenario) == first[0]
        assert stems() == [grown]
    before = grown.namespaces.pid
    assert eventually(lambda: not Path(f"/proc/{before}").exists(), within_s=LINGER_S + 5)
    assert run_cell(scenario) == first[0]
    with stem.kept(LINGER_S):
        assert stems() == []
        assert [run_cell(scenario) for _ in range(3)] == first
    assert eventually(lambda: stems() == [], within_s=LINGER_S + 5)
