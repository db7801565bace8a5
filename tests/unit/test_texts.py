"""Small texts: output of ping, of a guest, of a compiler, and errors."""

import os
import struct
from collections.abc import Iterator

import pytest

from skblab.errors import UsageError
from skblab.guest import mconsole
from skblab.guest.console import Console
from skblab.host.clients import PingReply, parse_ping
from skblab.image.build import trouble, with_ticks
from skblab.image.recipe import SERIES, VARIANTS, kernel_dir, parse_config, recipe_for, refused, wanted_options

PING = """\
PING 192.168.10.1 (192.168.10.1) 56(84) bytes of data.
64 bytes from 192.168.10.1: icmp_seq=1 ttl=64 time=3102 ms
64 bytes from 192.168.10.1: icmp_seq=3 ttl=64 time=0.084 ms
64 bytes from 192.168.10.1: icmp_seq=3 ttl=64 time=0.101 ms (DUP!)
From 192.168.10.254 icmp_seq=4 Destination Host Unreachable
ping: sendmsg: No buffer space available
"""


def test_the_replies_of_a_ping() -> None:
    assert parse_ping(PING) == [PingReply(1, 3102, False), PingReply(3, 0.084, False), PingReply(3, 0.101, True)]


def test_the_replies_of_a_ping_over_ipv6() -> None:
    assert parse_ping("64 bytes from fd00:10::1: icmp_seq=2 ttl=64 time=0.5 ms") == [PingReply(2, 0.5, False)]


@pytest.fixture
def console() -> Iterator[Console]:
    console = Console()
    yield console
    console.close()


def test_a_console_shows_why_the_kernel_died(console: Console) -> None:
    lines = [f"line {number}" for number in range(40)]
    trace = [f"trace {number}" for number in range(40)]
    panic = "[    0.010000] Kernel panic - not syncing: No init"
    os.write(console.writer, "\n".join([*lines, panic, *trace]).encode())
    assert console.panic() == "Kernel panic - not syncing: No init"
    evidence = console.evidence().splitlines()
    assert evidence[0] == "Kernel panic - not syncing: No init"
    assert evidence[-1] == "trace 0"
    assert "line 39" in evidence
    assert "line 5" not in evidence


def test_a_console_shows_its_last_lines(console: Console) -> None:
    os.write(console.writer, "\n".join(f"line {number}" for number in range(40)).encode())
    assert console.evidence().splitlines()[0] == "console tail:"
    assert console.evidence().splitlines()[-1] == "line 39"


def test_a_console_shows_no_orders_to_a_terminal(console: Console) -> None:
    os.write(console.writer, b"<6>\x1b[31mred\x1b[0m\x1b]0;title\x07\x9b2J\x00\b\ttab\r\n")
    assert console.text() == "red]0;title\ufffd2J\ttab\n"
    os.write(console.writer, "\x9b2J".encode())
    assert console.text().endswith("tab\n2J")


def test_a_console_cannot_be_taken_back_and_is_read_to_a_bound(console: Console) -> None:
    os.write(console.writer, b"said\n")
    with pytest.raises(PermissionError):
        os.ftruncate(console.writer, 0)
    os.ftruncate(console.writer, 1 << 50)
    assert console.text() == ""
    assert console.complaints() == ()


def test_a_console_on_which_nothing_was_printed_says_so(console: Console) -> None:
    assert "(nothing was printed)" in console.evidence()


def test_a_notification() -> None:
    datagram = struct.pack("<IIiI", 0xCAFEBABE, 2, 3, 6) + b"ready\0" + bytes(100)
    assert mconsole.parse_notification(datagram) == mconsole.Notification(mconsole.Kind.USER, "ready")


@pytest.mark.parametrize("datagram", [b"", bytes(16), struct.pack("<IIiI", 0xCAFEBABE, 2, 9, 0)])
def test_what_is_no_notification_is_refused(datagram: bytes) -> None:
    with pytest.raises(ValueError, match=r"notification|Kind"):
        mconsole.parse_notification(datagram)


def test_the_options_of_a_fragment() -> None:
    options = parse_config('# a comment\nCONFIG_A=y\n# CONFIG_B is not set\nCONFIG_C="text"\n')
    assert options == {"CONFIG_A": "y", "CONFIG_B": "n", "CONFIG_C": '"text"'}
    assert refused(options, {"CONFIG_A": "y"}) == ["CONFIG_C"]


def test_every_variant_has_its_fragments() -> None:
    for variant in VARIANTS:
        assert wanted_options(recipe_for("6.12", variant).fragments)["CONFIG_64BIT"] == "y"
    with pytest.raises(UsageError, match="no such variant"):
        recipe_for("6.12", "nonsense")
    assert SERIES
    assert (kernel_dir() / "init" / "init.c").is_file()


def test_ticks_are_an_option_before_the_kernels_own_definition() -> None:
    """Kconfig takes the first definition's default, and a prompt from any of them."""
    lines = with_ticks('# a comment\nmainmenu "Linux"\n\nsource "scripts/Kconfig.include"\nsource "a"\n').splitlines()
    assert lines[:2] == ["# a comment", 'mainmenu "Linux"']
    assert lines.index("config HZ") < lines.index('source "scripts/Kconfig.include"') < lines.index('source "a"')
    assert wanted_options(recipe_for("6.12", "hz1000").fragments)["CONFIG_HZ"] == "1000"
    assert "CONFIG_HZ" not in wanted_options(recipe_for("6.12", "default").fragments)


def test_a_failed_build_shows_the_compilers_own_lines() -> None:
    said = ["  CC      a.o"] * 50 + [
        "b.c:3:1: error: expected ';'",
        "    3 | }",
        "      | ^",
        "make[1]: *** [b.o] Error 1",
    ]
    assert trouble(said + ["  CC      c.o"] * 50).splitlines()[:3] == said[50:53]
    assert trouble(["nothing", "told"]) == "nothing\ntold"


def test_an_error_says_what_was_found_and_ends_with_a_hint() -> None:
    error = UsageError("it failed", found="line 1\nline 2", hint="first do\nthen do")
    assert str(error).splitlines() == [
        "it failed", "  line 1", "  line 2", "  hint: first do", "        then do",
    ]  # fmt: skip
