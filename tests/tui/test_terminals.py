"""The screen in terminals as people have them: a mouse, another size, no colours, over ssh; and other packets."""

import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.recipe import SERIES
from support import SKBLAB, eventually_nothing, remains
from tui.tmux import Tmux

COLOURED = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
Open = Callable[..., Tmux]
PING = ("ping", "-n", "-i", "0.3", "guest")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Open]:
    """Open a terminal with a program in it; it is gone afterwards, and all that the program had started."""
    before = remains()
    opened: list[Tmux] = []

    def open_it(*words: str, size: tuple[int, int] = (100, 30)) -> Tmux:
        opened.append(Tmux(str(tmp_path), *size, *words))
        return opened[-1]

    yield open_it
    for tmux in opened:
        tmux.close()
    assert eventually_nothing(before) == []


def test_with_the_mouse(terminal: Open) -> None:
    tmux = terminal(*SKBLAB, "hold", "-r", "icmp_rcv", "--", *PING)
    tmux.shows(r" 3 +\d+\.\d s +icmp_rcv")
    tmux.clicks(*tmux.place_of("seq 3 "))
    tmux.shows(r"#3 icmp_rcv\(\)")
    tmux.clicks(*tmux.place_of("r\N{NO-BREAK SPACE}release"))
    tmux.shows(r"-- #3 released by icmp_rcv\(\)")
    tmux.shows(r"icmp_seq=3 ttl=64")
    tmux.types("q")
    tmux.shows("status 0")


def test_another_size(terminal: Open) -> None:
    tmux = terminal(*SKBLAB, "hold", "-r", "icmp_rcv", "--", *PING, size=(80, 24))
    tmux.shows(r" 1 +\d+\.\d s +icmp_rcv")
    tmux.resize(160, 50)
    tmux.shows(r"0000 .*0050 ")
    tmux.resize(80, 24)
    tmux.shows(r"q.quit")
    tmux.types("r")
    tmux.shows(r"-- #1 released")
    tmux.types("q")
    tmux.shows("status 0")


def test_without_colours(terminal: Open) -> None:
    tmux = terminal("env", "NO_COLOR=1", *SKBLAB, "hold", "-r", "icmp_rcv", "--", *PING)
    tmux.shows(r" 2 +\d+\.\d s +icmp_rcv")
    grey = [code for code in COLOURED.findall(tmux.screen(colours=True)) if not _is_grey(code)]
    assert not grey, grey[:5]
    tmux.types("r")
    tmux.shows(r"-- #1 released")
    tmux.types("q")
    tmux.shows("status 0")


def _is_grey(code: str) -> bool:
    """Whether a colour has no hue: red, green and blue are the same, or it is of the grey ones of 256."""
    numbers = [int(number) for number in re.findall(r"\d+", code)]
    if 2 in numbers and len(numbers) >= 5:
        red, green, blue = numbers[-3:]
        return red == green == blue
    if 5 in numbers:
        return numbers[-1] in {0, 7, 8, 15, 16, 231} or numbers[-1] >= 232
    return all(number in {30, 37, 38, 40, 47, 48, 90, 97, 100, 107} or number < 30 for number in numbers)


@pytest.fixture
def ssh(tmp_path: Path) -> tuple[str, ...]:
    """How to log in here, at a server of the test's own, with a key of the test's own."""
    for name in ("host", "mine"):
        argv: list[process.Argument] = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / name]
        assert process.run(argv, timeout_s=20).returncode == 0
    (tmp_path / "authorized").write_text((tmp_path / "mine.pub").read_text())
    (tmp_path / "config").write_text(
        f"HostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\nUsePAM no\n"
        f"PermitRootLogin prohibit-password\nPidFile {tmp_path}/pid\nPasswordAuthentication no\n"
    )
    # A connection is a server of its own on a pair of pipes: nothing listens anywhere.
    server = shlex.join(["/usr/sbin/sshd", "-i", "-f", str(tmp_path / "config")])
    options = ("-o", f"ProxyCommand={server}", "-i", f"{tmp_path}/mine", "-o", "StrictHostKeyChecking=no",
               "-o", f"UserKnownHostsFile={tmp_path}/known", "-o", "LogLevel=ERROR", "-F", "none")  # fmt: skip
    Path("/run/sshd").mkdir(exist_ok=True)
    return ("ssh", "-tt", *map(shlex.quote, options), "localhost")


def test_over_ssh(terminal: Open, ssh: tuple[str, ...]) -> None:
    there = shlex.join([*SKBLAB, "hold", "-r", "icmp_rcv", "--", *PING])
    tmux = terminal(*ssh, shlex.quote(there), size=(80, 24))
    tmux.shows(r" 2 +\d+\.\d s +icmp_rcv")
    tmux.clicks(*tmux.place_of("seq 2 "))
    tmux.shows(r"#2 icmp_rcv\(\)")
    tmux.types("R")
    tmux.shows(r"replies ([2-9]|\d\d)")  # the lines of the first ones may be gone by now
    tmux.types("q")
    tmux.shows("status 0")


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.parametrize(
    ("rule", "command", "seen", "layer"),
    [
        ("icmpv6_rcv if icmp6 and ip6[40] == 128", "ping -6 -n -c 1 guest", "ICMP6, echo request", "IPv6  40 bytes"),
        ("tcp_v4_rcv", "curl -4 -s http://guest:9/", r"Flags \[S\], seq .* > 192.168.10.1.9", "IP  20 bytes"),
        ("udp_rcv", "bash -c 'echo hello >/dev/udp/192.168.10.1/9'", "UDP", "IP  20 bytes"),
        ("arp_rcv", "ping -n -c 1 guest", "ARP, Request who-has 192.168.10.1", "ARP  28 bytes"),
    ],
    ids=["icmpv6", "tcp", "udp", "arp"],
)
def test_other_packets(terminal: Open, series: str, rule: str, command: str, seen: str, layer: str) -> None:
    words = [*SKBLAB, "hold", "--series", series, "-r", rule, "--", *shlex.split(command)]
    tmux = terminal(*map(shlex.quote, words), size=(120, 40))
    tmux.shows(rf" 1 +\d+\.\d s +\w+ +.*{seen}")
    tmux.shows(layer)
    tmux.types("R")
    tmux.shows("-- #1 released")
    tmux.types("q")
    tmux.shows(r"status \d+")
