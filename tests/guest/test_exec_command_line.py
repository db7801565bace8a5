"""``skblab exec --guest`` and ``skblab cp``, as people and scripts use them; what is left when a process dies."""

import os
import signal
import subprocess
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import GuestCommandFailed, SkblabError
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import Time
from support import SKBLAB, Person, eventually_nothing, plain, remains, skblab, start_skblab

SAYS_HOW_IT_ENDS = """exec 2>/dev/null
trap 'echo hung up >/tmp/told; exit' HUP
sleep 1000 &
until test "$(cat /proc/$!/comm)" = sleep; do :; done
echo runs
wait"""
"""Prints that it was hung up. It `runs` when sleep was executed: a forked copy of the shell loses a signal."""


@pytest.fixture(scope="module")
def name(image: Image) -> Iterator[str]:
    """The name of a lab that is up, with this machine's programs; nothing of it stays behind."""
    before = remains()
    with Lab(f"guest-{os.getpid()}", image=image, root="host", memory_mib=128) as lab:
        lab.keep()
    yield lab.name
    with Lab.join(lab.name) as joined:
        joined.end()
    assert eventually_nothing(before) == []


def test_pipes_and_status_are_the_commands(name: str) -> None:
    script = "cat; echo no >&2; exit 9"
    running = process.start([*SKBLAB, "exec", "--guest", name, "--", "sh", "-c", script],
                            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    out, err = running.communicate(bytes(range(256)) * 4096, timeout=30)
    assert (out == bytes(range(256)) * 4096, err, running.returncode) == (True, b"no\n", 9)
    assert skblab("exec", "--guest", name, "--", "sh", "-c", "kill -USR1 $$").returncode == 128 + signal.SIGUSR1
    absent = skblab("exec", "--guest", name, "--", "nonesuch", "--help")
    assert (absent.returncode, absent.stderr.splitlines()[0]) == (127, "skblab: the guest has no program nonesuch")


@pytest.mark.parametrize("where", [["--guest"], []], ids=["guest", "host"])
def test_ctrl_c_off_a_terminal_is_for_the_command(name: str, where: list[str]) -> None:
    script = "trap 'echo caught; exit 5' INT; echo runs; while :; do sleep 0.1; done"
    running = start_skblab("exec", *where, name, "--", "sh", "-c", script)
    assert running.stdout
    assert running.stdout.readline() == b"runs\n"
    running.send_signal(signal.SIGINT)
    assert b"caught\n" in running.communicate(timeout=20)[0]
    assert running.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_whoever_ends_skblab_ends_the_command(name: str, number: signal.Signals) -> None:
    running = start_skblab("exec", "--guest", name, "--", "sh", "-c", SAYS_HOW_IT_ENDS)
    assert running.stdout
    assert running.stdout.readline() == b"runs\n"
    running.send_signal(number)
    process.finish(running, timeout_s=20)
    waits = (
        "until test -s /tmp/told; do sleep 0.01; done; cat /tmp/told; rm /tmp/told; while pgrep -x sleep; do :; done"
    )
    assert skblab("exec", "--guest", name, "--", "sh", "-c", waits).stdout == "hung up\n"


def test_ctrl_c_on_a_terminal_ends_a_command_on_the_host_side(name: str) -> None:
    person = Person("exec", name, "--", "sh", "-c", "echo runs; exec sleep 100")
    person.reads("runs")
    person.types(b"\x03")
    assert person.program.wait(20) == 128 + signal.SIGINT
    os.close(person.terminal)


def test_a_program_that_may_not_be_executed(name: str) -> None:
    assert [skblab("exec", *where, name, "--", "/etc").returncode for where in ([], ["--guest"])] == [126, 126]


def test_a_terminal_and_its_size(name: str) -> None:
    person = Person("exec", "--guest", name, "--", "sh", "-c",
                    "trap 'stty size' WINCH; stty size; while :; do sleep 0.1; done")  # fmt: skip
    person.reads("50 100")
    termios.tcsetwinsize(person.terminal, (20, 70))
    person.reads("20 70")
    person.types(b"\x03")
    assert person.program.wait(20) == 128 + signal.SIGINT
    os.close(person.terminal)


def test_two_terminals_at_once(name: str) -> None:
    first, second = (Person("exec", "--guest", name, "--", "sh", "-i") for _ in range(2))
    for number, person in enumerate((first, second)):
        person.reads("# ")
        person.types(f"x=mine{number}; echo a$x\r".encode())
        person.reads(f"amine{number}")
    for number, person in enumerate((first, second)):
        person.types(b"tty; echo $x; exit 3\r")
        person.reads(f"\nmine{number}")
        assert person.program.wait(20) == 3
        os.close(person.terminal)
    assert name_of_tty(first) != name_of_tty(second)


def name_of_tty(person: Person) -> str:
    return next(line for line in plain(person.read).splitlines() if line.startswith("/dev/pts/"))


def test_a_terminal_that_is_closed(name: str) -> None:
    person = Person("exec", "--guest", name, "--", "sh", "-c", SAYS_HOW_IT_ENDS)
    person.reads("runs")
    os.close(person.terminal)
    assert person.program.wait(20) == 128 + signal.SIGHUP
    waits = "while ! test -s /tmp/told; do sleep 0.01; done; cat /tmp/told; rm /tmp/told"
    assert skblab("exec", "--guest", name, "--", "sh", "-c", waits).stdout == "hung up\n"


def test_a_terminal_that_is_closed_to_a_program_that_ignores_it(name: str) -> None:
    writes = "while echo runs; do sleep 0.1; done"
    person = Person("exec", "--guest", name, "--", "sh", "-c", writes, program=["env", "--ignore-signal=HUP", *SKBLAB])
    person.reads("runs")
    os.close(person.terminal)
    assert person.program.wait(20) == SkblabError.exit_status  # standard output is refused


def test_down_during_a_command_leaves_nothing(image: Image) -> None:
    before = remains()
    with Lab(f"down-{os.getpid()}", image=image, root="host") as lab:
        lab.keep()
    running = start_skblab("exec", "--guest", lab.name, "--", "sh", "-c", "echo runs; sleep 1000")
    assert running.stdout
    assert running.stdout.readline() == b"runs\n"
    assert skblab("down", lab.name).returncode == 0
    said = process.finish(running, timeout_s=20)
    assert (running.returncode, "the guest kernel is gone" in said.stdout) == (128, True)
    assert eventually_nothing(before) == []


def test_cp(name: str, tmp_path: Path) -> None:
    (tmp_path / "a:b").write_bytes(bytes(range(256)))
    (tmp_path / "a:b").chmod(0o751)
    assert skblab("cp", f"{tmp_path}/a:b", f"{name}:/tmp/there").returncode == 0
    assert skblab("exec", "--guest", name, "--", "stat", "-c%a", "/tmp/there").stdout == "751\n"
    assert skblab("cp", f"{name}:/tmp/there", f"{tmp_path}/back").returncode == 0
    assert (tmp_path / "back").read_bytes() == bytes(range(256))
    assert (tmp_path / "back").stat().st_mode & 0o777 == 0o751
    nowhere = skblab("cp", "a", "b")
    assert (nowhere.returncode, "skblab cp PATH LAB:PATH" in nowhere.stderr) == (2, True)


def test_a_guest_command_that_is_started_first() -> None:
    done = skblab("run", "--root", "host", "-g", "iperf3 -s -1", "--", "iperf3", "-c", "guest", "-t", "2")
    assert done.returncode == 0, done.stderr
    receiver = next(line for line in done.stdout.splitlines() if line.endswith("receiver"))
    assert float(receiver.split()[6]) > 0
    assert "bits/sec" in receiver
    ended = skblab("run", "--root", "host", "-g", "echo why not; exit 3", "--", "true")
    assert ended.returncode == 1
    assert "a command in the guest has ended (status 3) before it listened" in ended.stderr
    assert "why not" in ended.stderr


def test_help_has_examples() -> None:
    for command in ("exec", "cp", "console"):
        assert "examples:\n  skblab" in skblab(command, "--help").stdout


ONE_PORT = """
import pathlib, socket, sys, time
def until(there):
    while not there():
        time.sleep(0.01)
with socket.socket() as server:
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("", 80))
    pathlib.Path(f"/tmp/{sys.argv[1]}").touch()
    until(pathlib.Path("/tmp/second").exists)
    if sys.argv[1] == "second":
        until(lambda: socket.socket().connect_ex(("192.168.10.1", 80)) == 0)
    server.listen()
    until(lambda: False)
"""


def test_a_server_whose_port_is_taken_does_not_listen(every_image: Image, tmp_path: Path) -> None:
    program = tmp_path / "server.py"
    program.write_text(ONE_PORT)
    commands = [f"python3 {program} {which}" for which in ("first", "second")]
    with (
        pytest.raises(GuestCommandFailed, match=r"has ended \(status 1\) before it listened") as failed,
        Lab(image=every_image, root="host", commands=commands),
    ):
        pass
    assert "Address already in use" in failed.value.found


TWO_PORTS = """
import socket, time
servers = [socket.create_server(("", port)) for port in (8001, 8002)]
time.sleep(600)
"""


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_each_server_listens_not_one_of_them_twice(time: Time, tmp_path: Path) -> None:
    program = tmp_path / "two.py"
    program.write_text(TWO_PORTS)
    commands = [f"python3 {program}", "sleep 1; exec python3 -m http.server 8003"]
    with Lab(root="host", time=time, commands=commands) as lab:
        assert lab.run(["curl", "-s", "http://guest:8003/"]).returncode == 0
        with pytest.raises(GuestCommandFailed, match=r"has ended \(status 7\) before it listened"):
            lab.serve("sleep 0.5; exit 7")
        # Nor is what another program listens on this server's.
        other = lab.guest.popen(["sh", "-c", "sleep 1; exec python3 -m http.server 8004"])
        with pytest.raises(GuestCommandFailed, match=r"has ended \(status 8\) before it listened"):
            lab.serve("sleep 3; exit 8")
        other.close()


def test_a_server_that_goes_into_the_background(tmp_path: Path) -> None:
    """It listens in a session of its own."""
    program = tmp_path / "daemon.py"
    program.write_text(
        "import os, socket, time\n"
        "if os.fork(): time.sleep(600)\n"
        "os.setsid()\n"
        "server = socket.create_server(('', 8005))\n"
        "time.sleep(600)\n"
    )
    with Lab(root="host", time="virtual", commands=[f"python3 {program}"]) as lab:
        assert lab.run(["python3", "-c", "import socket; socket.create_connection(('guest', 8005))"]).returncode == 0
