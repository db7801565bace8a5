"""Virtual time in a lab for several commands: one grants time after the other, and none passes between them."""

import os
import pty
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.cli import hold
from skblab.errors import CannotWrite, UsageError
from skblab.host import process
from skblab.lab import Lab
from skblab.rule import Rule
from support import SKBLAB, read_until, skblab, start_skblab

NAME = "virtual"


@pytest.fixture(scope="module")
def up() -> Iterator[None]:
    done = skblab("up", NAME, "--time", "virtual", "-g", "python3 -m http.server 80")
    assert done.returncode == 0, done.stderr
    yield
    assert skblab("down", NAME).returncode == 0


def uptime_s() -> float:
    return float(skblab("exec", "--guest", NAME, "--", "cat", "/proc/uptime").stdout.split()[0])


@pytest.mark.usefixtures("up")
def test_one_command_after_another(tmp_path: Path) -> None:
    assert skblab("exec", NAME, "--", "curl", "-s", "http://guest/etc/hostname").stdout == _hostname()
    before_s = uptime_s()
    assert uptime_s() == before_s
    assert skblab("exec", NAME, "--", "sleep", "100").returncode == 0
    assert uptime_s() == pytest.approx(before_s + 100, abs=0.1)
    (tmp_path / "there").write_text("and back")
    assert skblab("cp", str(tmp_path / "there"), f"{NAME}:/tmp/x").returncode == 0
    assert skblab("cp", f"{NAME}:/tmp/x", str(tmp_path / "back")).returncode == 0
    assert (tmp_path / "back").read_text() == "and back"
    rule = "icmp_rcv = delay 300ms if icmp[icmptype] == icmp-echo"
    done = skblab("run", "--lab", NAME, "-r", rule, "--", "ping", "-c1", "guest")
    assert "time=300 ms" in done.stdout
    assert skblab("exec", NAME, "--", "sh", "-c", "exit 7").returncode == 7


def _hostname() -> str:
    return Path("/etc/hostname").read_text()


@pytest.mark.usefixtures("up")
def test_what_is_for_a_person_is_refused() -> None:
    done = skblab("gdb", NAME, "-ex", "quit")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a person at gdb's prompt takes real time" in done.stderr
    with pytest.raises(UsageError, match="the screen is for a person, in real time"):
        hold.show(Lab.join(NAME), [Rule.parse("icmp_rcv = hold")], ["ping", "-c1", "guest"])


@pytest.mark.usefixtures("up")
def test_one_at_a_time_grants_time() -> None:
    with Lab.join(NAME) as lab:
        busy = skblab("exec", NAME, "--", "true")
        assert busy.returncode == 1
        assert "another command has its agent" in busy.stderr
        before_s = lab.clock.now
        lab.clock.advance("600s")
        assert lab.clock.now == pytest.approx(before_s + 600, abs=1e-3)


@pytest.mark.usefixtures("up")
def test_the_next_goes_on_where_one_was_interrupted() -> None:
    running = start_skblab("exec", NAME, "--", "sh", "-c", "echo begun; while :; do sleep 1; done")
    assert running.stdout
    read_until(running.stdout.fileno(), lambda said: "begun" in said, within_s=30)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert running.returncode == 128 + signal.SIGTERM
    assert "1 received" in skblab("exec", NAME, "--", "ping", "-c1", "guest").stdout


def test_one_that_was_killed_while_it_granted_time_may_be_the_end() -> None:
    """The guest may wait for an answer that nobody can give now; then the next command says so."""
    assert skblab("up", "killed", "--time", "virtual").returncode == 0
    try:
        running = start_skblab("exec", "killed", "--", "sh", "-c", "echo begun; while :; do sleep 1; done")
        assert running.stdout
        read_until(running.stdout.fileno(), lambda said: "begun" in said)
        running.send_signal(signal.SIGKILL)
        process.end(running)
        done = skblab("exec", "killed", "--", "ping", "-c1", "guest")
        assert "1 received" in done.stdout or "has not given\n  hint: this lab cannot go on" in done.stderr
    finally:
        ended = skblab("down", "killed")
    assert "panic" not in ended.stderr


@pytest.mark.usefixtures("up")
def test_at_a_terminal_time_passes_as_it_does_here() -> None:
    """A person who types would otherwise see hours go by between two keys."""
    ours, theirs = pty.openpty()
    shell = process.start([*SKBLAB, "exec", "--guest", NAME, "--", "sh"], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    with open(ours, "rb+", 0) as terminal:  # noqa: PTH123 - a descriptor
        terminal.write(b"echo be''gun\n")
        read_until(ours, lambda said: "begun" in said)
        began_s = time.monotonic()
        terminal.write(b"sleep 1; echo sl''ept; exit\n")
        read_until(ours, lambda said: "slept" in said)
        assert time.monotonic() - began_s >= 1
        assert shell.wait(10) == 0


@pytest.mark.usefixtures("up")
@pytest.mark.parametrize("where", [["--guest"], []], ids=["guest", "host"])
def test_output_that_cannot_be_written_is_an_error(where: list[str]) -> None:
    with Path("/dev/full").open("wb") as full:
        running = process.start([*SKBLAB, "exec", *where, NAME, "--", "echo", "hi"], stdout=full, stderr=-1)
        said = process.finish(running, timeout_s=20)
    assert (said.returncode, said.stderr.splitlines()[:2]) == (
        CannotWrite.exit_status, ["skblab: cannot write what the command says", "  No space left on device"],
    )  # fmt: skip
