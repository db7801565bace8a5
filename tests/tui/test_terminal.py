"""The whole command in a real terminal: what a person sees, what the keys do, what is left behind."""

import contextlib
import fcntl
import os
import re
import signal
import struct
import subprocess
import termios
from collections.abc import Callable, Iterator

import pytest

from skblab.host import process
from support import SKBLAB, environment_of_a_terminal, eventually_nothing, read_until, remains, skblab

LINES, COLUMNS = 24, 80
END_OF_SCREEN = "\x1b[?1049l"  # back from the alternate screen


class Terminal:
    """A terminal of 80 columns and 24 lines, with a command in it."""

    def __init__(self, *words: str, controlling: bool = True, **environment: str) -> None:
        self.ours, self.theirs = os.openpty()
        fcntl.ioctl(self.theirs, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
        self.before = termios.tcgetattr(self.theirs)
        with os.fdopen(self.theirs, "r+b", buffering=0, closefd=False) as tty:
            self.program = process.start(
                ["setsid", *(["--ctty"] if controlling else []), "--wait", *SKBLAB, *words],
                stdin=tty, stdout=tty, stderr=tty, env=environment_of_a_terminal() | environment,
            )  # fmt: skip
        self.read = ""

    def types(self, keys: str) -> None:
        os.write(self.ours, keys.encode())

    def until(self, enough: Callable[[str], bool]) -> str:
        """Read until what came since the last time is enough."""
        self.read = read_until(self.ours, lambda text: enough(plain(text)))
        return plain(self.read)

    def ends(self) -> tuple[int, str]:
        """Read to the end of the program; return its status and what it printed when the screen had gone."""
        said = read_until(self.ours, lambda text: "lost: " in text or "guest kernel is gone" in text)
        return self.program.wait(20), plain(said.rpartition(END_OF_SCREEN)[2])

    def hang_up(self) -> None:
        """Close the terminal's window."""
        for descriptor in (self.ours, self.theirs):
            os.close(descriptor)
        self.ours = self.theirs = -1

    def resize(self, lines: int, columns: int) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?<>=]*[a-zA-Z]|\r", "", text)


@pytest.fixture
def start() -> Iterator[Callable[..., Terminal]]:
    before = remains()
    terminals: list[Terminal] = []

    def begin(*words: str, controlling: bool = True, **environment: str) -> Terminal:
        terminals.append(Terminal(*words, controlling=controlling, **environment))
        return terminals[-1]

    yield begin
    for terminal in terminals:
        process.end(terminal.program)
        if terminal.ours >= 0:
            terminal.hang_up()
    assert eventually_nothing(before) == []


@pytest.mark.parametrize("environment", [{}, {"NO_COLOR": "1"}])
def test_a_packet_is_held_and_released_with_keys(start: Callable[..., Terminal], environment: dict[str, str]) -> None:
    terminal = start("hold", "--", "ping", "-n", "-i", "0.5", "guest", **environment)
    read = terminal.until(lambda text: "seq 1" in text and "IP  20 bytes" in text)
    assert "icmp_rcv = hold" in read
    assert "net/ipv4/icmp.c:" in read
    assert "ping -n -i 0.5 guest: running" in read
    for key in ("release", "all", "reversed", "drop", "edit", "filter", "mark", "save", "quit"):
        assert key in read
    terminal.types("r")
    terminal.until(
        lambda text: (
            "#1 released by icmp_rcv() after" in text and "icmp_seq=1 ttl=64 time=" in text and "seq 2 " in text
        )
    )
    terminal.types("x")
    terminal.until(lambda text: "#2 dropped by icmp_rcv()" in text)
    terminal.resize(50, 160)
    terminal.until(lambda text: "IP  20 bytes" in text)
    terminal.types("q")
    status, said = terminal.ends()
    assert status == 0
    assert re.search(r"icmp_rcv = hold: arrived \d+, held \d+, released \d+, dropped 1\n", said)
    assert said.rstrip().endswith("lost: 0")
    assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize("how", ["Ctrl-C", "SIGTERM"])
def test_it_ends_cleanly_and_gives_the_terminal_back(start: Callable[..., Terminal], how: str) -> None:
    terminal = start("hold", "-r", "ip_rcv if icmp", "--", "ping", "-n", "guest")
    terminal.until(lambda text: "seq 1" in text)
    if how == "Ctrl-C":
        terminal.types("\x03")
    else:
        os.kill(terminal.program.pid, signal.SIGTERM)
    status, said = terminal.ends()
    assert status == (0 if how == "Ctrl-C" else 143)
    assert "Traceback" not in said
    assert termios.tcgetattr(terminal.theirs) == terminal.before


@pytest.mark.parametrize("shown", ["\x1b", "ARP, Request"])
def test_it_ends_however_often_it_is_told_to(start: Callable[..., Terminal], shown: str) -> None:
    """A signal during its end must not leave the thread behind that reads keys: the program would wait for it."""
    terminal = start("hold", "-r", "arp_rcv", "--", "ping", "-n", "-c", "1", "guest")
    read_until(terminal.ours, lambda text: shown in text)
    terminal.hang_up()
    with contextlib.suppress(ProcessLookupError):
        for _ in range(200):
            os.kill(terminal.program.pid, signal.SIGHUP)
            with contextlib.suppress(subprocess.TimeoutExpired):
                terminal.program.wait(0.005)
    assert terminal.program.wait(20) in {1, 129, -signal.SIGHUP}


@pytest.mark.parametrize("controlling", [True, False])
def test_it_ends_with_its_terminal(start: Callable[..., Terminal], *, controlling: bool) -> None:
    terminal = start("hold", "--", "ping", "-n", "-i", "0.2", "guest", controlling=controlling)
    terminal.until(lambda text: "seq 1" in text)
    terminal.hang_up()
    assert terminal.program.wait(20) in {1, 129}


def test_without_a_terminal_it_names_the_command_that_needs_none() -> None:
    done = skblab("hold", "-r", "icmp_rcv if icmp", "--", "ping", "-c1", "guest")
    assert done.returncode == 2
    assert "skblab hold needs a terminal for its screen" in done.stderr
    assert "skblab run -r 'icmp_rcv = hold if icmp' -- ping -c1 guest" in done.stderr


def test_a_wrong_rule_is_one_sentence_and_no_screen(start: Callable[..., Terminal]) -> None:
    terminal = start("hold", "-r", "icmp_rvc", "--", "ping", "guest")
    read = terminal.until(lambda text: "near: icmp_rcv" in text)
    assert END_OF_SCREEN not in terminal.read
    assert 'no function "icmp_rvc" in Linux' in read
    assert terminal.program.wait(20) == 2
