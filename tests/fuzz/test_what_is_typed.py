"""Bad rules, filters, packets and command lines: each is one error, without a traceback or a hang.

``make torture`` tries ten times as many.
"""

import contextlib
import io
from itertools import chain

from hypothesis import given
from hypothesis import strategies as st

from fuzz import fuzzed
from skblab import cli
from skblab.cli.options import lab_from
from skblab.cli.rules import rules_from
from skblab.edit import changing, difference, edited
from skblab.errors import SkblabError
from skblab.filter import INSTRUCTION_BYTES, compile_filter
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6
from skblab.verdict import VERDICTS

NUMBERS = st.one_of(
    st.integers(-2, 70_000).map(str),
    st.sampled_from(
        ["", "0", "1", "00", "-1", "1e9", "0x10", "2147483648", "4294967296", "9" * 30, "9" * 5000, "\u0663"]
    ),
)
WORDS = st.one_of(
    st.sampled_from(
        [
            *VERDICTS,
            "icmp_rcv",
            "=",
            "==",
            "release",
            "fifo",
            "random",
            "@",
            "@3",
            "@2-",
            "@every",
            "@random",
            "10%",
            "nan%",
            "1e-300%",
            "seed",
            "+-",
            "+-1ms",
            "300ms",
            "1.5s",
            "20us",
            "1ns",
            "ip.ttl=3",
            "ip.ttl=",
            "raw.load=\\x",
            ",",
            "if",
            "NO_SOCKET",
            "#",
            "\0",
            "\ud800",
            "\x1b[31m",
            "\n",
            "\ufeff",
        ]
    ),
    NUMBERS,
    st.builds("{}{}".format, NUMBERS, st.sampled_from(["ms", "s", "ns", "%", "-", "-5"])),
    st.builds("@{}".format, NUMBERS),
    st.text(max_size=10),
)
RULES = st.one_of(
    st.text(max_size=80),
    st.lists(WORDS, max_size=8).map(" ".join),
    st.builds("icmp_rcv = {} {}".format, st.sampled_from(sorted(VERDICTS)), st.lists(WORDS, max_size=6).map(" ".join)),
)
# No word that libpcap could take for a host's name and resolve.
FILTERS = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "icmp",
                "icmp6",
                "tcp",
                "udp",
                "arp",
                "ip",
                "ip6",
                "ether",
                "proto",
                "port",
                "portrange",
                "and",
                "or",
                "not",
                "(",
                ")",
                "[",
                "]",
                "icmp[icmptype]",
                "ip[0]",
                "tcp[tcpflags]",
                "&",
                "|",
                "!=",
                "==",
                "<",
                ">",
                "+",
                "/",
                "len",
                "less",
                "greater",
                "broadcast",
                "multicast",
                "inbound",
                "vlan",
                "mpls",
                "protochain",
                "host 10.0.0.1",
                "net 10",
                "src",
                "dst",
                "link[0]",
                "wlan",
                "gateway",
                "\0",
                "\ud800",
                "1-2",
                "ip[65536:4]",
                "1.2.3.4.5",
                "::",
                "\\",
            ]
        ),
        NUMBERS,
    ),
    max_size=12,
).map(" ".join)
OPTIONS = st.one_of(
    st.sampled_from(
        [
            "-r",
            "-f",
            "-p",
            "-q",
            "-v",
            "-g",
            "--json",
            "--root",
            "host",
            "--link",
            "tap",
            "lan,veth",
            "on=",
            "--memory",
            "--",
            "--series",
            "6.1",
            "--variant",
            "kasan",
            "--image",
            "--lab",
            "--name",
            "--consoles",
            "--module",
            "x.ko,a=b",
            "--disk",
            "--field",
            "skb->len",
            "--calls",
            "--packet",
            "--table",
            "--all",
            "--ring",
            "-o",
            "--help",
            "--version",
            "--lease",
            "ping",
            "guest",
            "icmp",
            "/nonexistent",
            "",
            "icmp_rcv = drop",
            "-1",
            "=",
            "--=",
            "---",
            "-",
        ]
    ),
    NUMBERS.filter(lambda text: len(text) < 100),
    RULES,
)
COMMANDS = (*chain(*cli.MODULES.values()), "")
OF_A_LAB = {"run", "hold", "trace", "ping", "up"}
DATA = st.one_of(
    st.binary(max_size=200),
    st.builds(lambda first, rest: bytes([first]) + rest, st.sampled_from([0x45, 0x4F, 0x60]), st.binary(max_size=200)),
)
PROTOCOLS = st.one_of(st.sampled_from([ETH_P_IP, ETH_P_IPV6, ETH_P_ARP]), st.integers(0, 0xFFFF))
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            [
                "ip.ttl",
                "ip.len",
                "ip.src",
                "ip.options",
                "ipv6.plen",
                "icmp.seq",
                "tcp.flags",
                "raw.load",
                "ip:2.ttl",
                "x.y",
            ]
        ),
        st.one_of(
            NUMBERS, st.sampled_from(["SA", "10.0.0.1", "::1", "a\\x20b", "\\x", "None", "[]"]), st.text(max_size=8)
        ),
    ),
    min_size=1,
    max_size=3,
)


def is_a_sentence(error: SkblabError) -> bool:
    return bool(error.what.strip()) and "Traceback" not in str(error) and "object at 0x" not in str(error)


@fuzzed
@given(text=RULES)
def test_rules(text: str) -> None:
    for parse in (Rule.parse, Rule.parse_hold):
        try:
            rule = parse(text)
        except SkblabError as error:
            assert is_a_sentence(error)  # noqa: PT017
        else:
            assert Rule.parse(str(rule)) == rule


@fuzzed
@given(text=FILTERS)
def test_filters(text: str) -> None:
    try:
        code = compile_filter(text)
    except SkblabError as error:
        assert is_a_sentence(error)  # noqa: PT017
    else:
        assert len(code) % INSTRUCTION_BYTES == 0


@fuzzed
@given(data=DATA, protocol=PROTOCOLS, changes=CHANGES)
def test_packets(data: bytes, protocol: int, changes: list[tuple[str, str]]) -> None:
    packet = Packet(data, protocol)
    assert packet.summary()
    try:
        after = edited(packet, changing(changes))
    except SkblabError as error:
        assert is_a_sentence(error)  # noqa: PT017
    else:
        assert 0 <= after.data_offset <= len(after.packet.data)
        assert after.packet.summary()
        assert bool(difference(packet, after.packet)) == (packet.data != after.packet.data)


@fuzzed
@given(command=st.sampled_from(COMMANDS), words=st.lists(OPTIONS, max_size=8))
def test_command_lines(command: str, words: list[str]) -> None:
    """They are parsed, and the lab and the rules that they describe are made; none is started."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
        try:
            arguments = cli._parse([command, *words])
            if command in OF_A_LAB:
                if hasattr(arguments, "rules"):
                    rules_from(arguments)
                lab_from(arguments)
        except SystemExit as end:
            assert end.code in {0, 2}, end.code  # noqa: PT017
            assert said.getvalue().strip()
        except SkblabError as error:
            assert is_a_sentence(error)  # noqa: PT017
    assert "Traceback" not in said.getvalue()
