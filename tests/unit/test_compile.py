"""From a rule to the agent's command, without a kernel: an index of a few functions is enough."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.agent import abi
from skblab.agent.compile import CHANCES, SHOWN_BYTES, WHOLE_PACKET, compile_rule, compile_watch
from skblab.agent.contracts import BY_MEMBER
from skblab.agent.functions import owners, packet_argument, sound_verdicts, why_not_followed
from skblab.agent.probes import choose, probes_of
from skblab.errors import RuleError, UnsupportedVerdict
from skblab.filter import compile_filter
from skblab.image.image import INDEX, SOURCE, Image
from skblab.image.index import Function, write_index
from skblab.image.members import FILE
from skblab.image.members import FUNCTIONS as FUNCTIONS_OF
from skblab.image.module import keep
from skblab.rule import Rule
from skblab.verdict import ROWS, VERDICTS, Verdict

SKB, NET, SOCK = ("skb", "struct sk_buff *"), ("net", "struct net *"), ("sk", "struct sock *")
DEVICE, NUMBER = ("dev", "struct net_device *"), ("n", "int")
REASONS = """enum skb_drop_reason {
	SKB_NOT_DROPPED_YET = 0,
	SKB_CONSUMED,
	SKB_DROP_REASON_NOT_SPECIFIED,
	SKB_DROP_REASON_NO_SOCKET,
	SKB_DROP_REASON_MAX,
};
"""
FUNCTIONS: tuple[tuple[str, int, int, str, int, str, list[tuple[str, str]]], ...] = (
    ("icmp_rcv", 0x1000, 64, "net/ipv4/icmp.c", 1, "int", [SKB]),
    ("ip_rcv", 0x1100, 64, "net/ipv4/ip_input.c", 1, "int", [SKB, DEVICE, ("pt", "struct packet_type *"), DEVICE]),
    ("ip_output", 0x1200, 64, "net/ipv4/ip_output.c", 1, "int", [NET, SOCK, SKB]),
    ("icmp_echo", 0x1300, 64, "net/ipv4/icmp.c", 9, "enum skb_drop_reason", [("icmp_param", "struct icmp_bxm *"), SKB]),
    ("tcp_sendmsg", 0x1400, 64, "net/ipv4/tcp.c", 1, "int", [SOCK]),
    ("on_stack", 0x1500, 64, "net/core/dev.c", 1, "int", [NUMBER] * 6 + [SKB]),
    ("by_pointer", 0x1600, 64, "net/core/dev.c", 2, "int", [NUMBER, ("pskb", "struct sk_buff **")]),
    ("looks", 0x1700, 64, "net/core/dev.c", 3, "int", [("skb", "const struct sk_buff *")]),
    ("ip_list_rcv", 0x1800, 64, "net/ipv4/ip_input.c", 2, "void", [("head", "struct list_head *")]),
    ("list_sort", 0x1900, 64, "net/core/dev.c", 4, "void", [("head", "struct list_head *")]),
    ("kfree_skbmem", 0x1A00, 64, "net/core/skbuff.c", 1, "void", [SKB]),
    ("vector_net_start_xmit", 0x1B00, 64, "arch/um/drivers/vector_kern.c", 1, "int", [SKB, DEVICE]),
    ("um_timer", 0x1C00, 64, "arch/um/kernel/time.c", 1, "int", [SKB]),
    ("alloc", 0x1C40, 64, "net/core/skbuff.c", 3, "struct sk_buff *", [NUMBER]),
    ("whether", 0x1C80, 64, "net/core/dev.c", 5, "bool", []),
    ("whole", 0x1CC0, 64, "net/core/dev.c", 6, "struct timespec64", []),
    ("protocol", 0x1CD0, 16, "net/core/dev.c", 7, "__be16", []),
    ("level", 0x1CE0, 16, "net/core/dev.c", 8, "u8", []),
    ("pskb_expand_head", 0x1D00, 64, "net/core/skbuff.c", 2, "int", [SKB, NUMBER]),
    ("mine_xmit", 0x1D40, 64, "mine/mine.c", 1, "netdev_tx_t", [SKB, DEVICE]),
    ("mine_rcv", 0x1D80, 64, "mine/mine.c", 2, "int", [SKB]),
)
MEMBERS = {
    0x1000: ["net_protocol.handler"],
    0x1D40: ["net_device_ops.ndo_start_xmit"],
    0x1D80: ["net_protocol.handler", "xfrm_tunnel.handler"],
}
EVERY = [row.word for row in ROWS]
SEED = 5
ANYWHERE = ["accept", "trace", "return", "stop"]
BARE = ["accept", "trace", "return"]  # without a packet to look at


@pytest.fixture
def small(tmp_path: Path) -> Image:
    """An image of these functions: what is compiled needs no kernel."""
    write_index(tmp_path / INDEX, FUNCTIONS, {})
    keep(json.dumps(MEMBERS).encode(), tmp_path / FILE)
    header = tmp_path / SOURCE / "include/net/dropreason-core.h"
    header.parent.mkdir(parents=True)
    header.write_text(REASONS)
    return Image(tmp_path, "6.12", "small", "6.12.1", "", {}, {})


def function(image: Image, name: str) -> Function:
    found = image.functions.lookup(name)
    assert found
    return found


def compiled(image: Image, text: str, lease_s: float = 0.0) -> abi.Arm:
    rule = Rule.parse(text)
    return compile_rule(rule, function(image, rule.function), image, lease_s, SEED)


@pytest.mark.parametrize("row", ROWS, ids=EVERY)
def test_every_verdict_is_compiled_by_its_row(small: Image, row: Verdict) -> None:
    arm = compiled(small, f"icmp_rcv = {row.example}")
    assert (arm.address, arm.verdict, arm.skb_argument) == (0x1000, row.number, 0)
    assert arm.captured_bytes == (WHOLE_PACKET if row.whole else SHOWN_BYTES)
    assert (arm.text_start, arm.text_end) == ((0x1000, 0x1DC0) if row.stack else (0, 0))


def test_the_arguments_of_each_verdict(small: Image) -> None:
    arms = {
        text: compiled(small, f"icmp_rcv = {text}")
        for text in ("hold 3", "delay 0s", "delay 2ms +-1us", "drop", "drop NO_SOCKET", "drop 3", "duplicate 7")
    }
    assert [(arm.delay_ns, arm.jitter_ns) for arm in list(arms.values())[:3]] == [(0, 0), (1, 0), (2_000_000, 1_000)]
    assert [arms[text].reason for text in ("drop", "drop NO_SOCKET", "drop 3")] == [2, 3, 3]
    assert [arms[text].argument for text in ("drop", "duplicate 7")] == [0, 7]
    assert arms["hold 3"].reason == 2  # a held packet may be dropped
    with pytest.raises(RuleError, match="has no drop reason NO_SUCH"):
        compiled(small, "icmp_rcv = drop NO_SUCH")


def test_occurrences_filters_and_leases(small: Image) -> None:
    arm = compiled(small, "ip_rcv = hold @2-5 if icmp", lease_s=1.5)
    assert (arm.first, arm.last, arm.every, arm.chance, arm.lease_ns) == (2, 5, 0, 0, 1_500_000_000)
    assert arm.filter == compile_filter("icmp")
    assert compiled(small, "ip_rcv = delay 1s", lease_s=1.5).lease_ns == 0  # it ends by itself
    assert compiled(small, "ip_rcv = drop @every 3").every == 3
    chances = {"100%": 0, "50%": CHANCES // 2, "0.0000001%": 4}
    for percent, chance in chances.items():
        arm = compiled(small, "ip_rcv = drop")
        assert compiled(small, f"ip_rcv = drop @random {percent}") == arm._replace(chance=chance, seed=SEED)
        seed = compiled(small, "ip_rcv = drop @random 50% seed 9").seed
        assert compiled(small, f"ip_rcv = drop @random {percent} seed 9") == arm._replace(chance=chance, seed=seed)


def test_the_seeds_that_people_type_choose_at_random(small: Image) -> None:
    """One in ten seeds has the first packet, and one in ten the second, although the generator is a simple one."""
    arms = [compiled(small, f"ip_rcv = drop @random 10% seed {seed}") for seed in range(1, 1001)]
    drawn = [[number < arm.chance for number in xorshift32(arm.seed, 4)] for arm in arms]
    assert all(70 < sum(taken) < 130 for taken in zip(*drawn, strict=True))
    assert len({arm.seed for arm in arms} - {0}) == 1000


def xorshift32(x: int, count: int) -> Iterator[int]:
    """Yield the agent's random numbers: kernel/agent/rule.c agent_random()."""
    for _ in range(count):
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        yield x


def test_what_the_caller_gets_and_what_a_held_packet_needs(small: Image) -> None:
    arm = compiled(small, "ip_output = hold")
    assert (arm.held_returns, arm.dropped_returns) == (0, 1)
    assert (arm.skb_argument, arm.device_arguments, arm.socket_arguments, arm.net_arguments) == (2, 0, 0b10, 0b1)
    assert compiled(small, "ip_rcv = hold").device_arguments == 0b1010
    assert compiled(small, "icmp_echo = trace").skb_argument == 1
    assert compile_watch(function(small, "tcp_sendmsg")) == abi.Arm(
        0x1400, VERDICTS["trace"].number, skb_argument=abi.NO_PACKET
    )


@pytest.mark.parametrize(
    ("name", "argument", "indirection", "followed", "verdicts"),
    [
        ("icmp_rcv", 0, abi.Indirection.DIRECT, True, EVERY),
        ("ip_output", 2, abi.Indirection.DIRECT, True, EVERY),
        ("icmp_echo", 1, abi.Indirection.DIRECT, True, ANYWHERE),
        ("tcp_sendmsg", None, None, False, BARE),
        ("on_stack", 6, abi.Indirection.DIRECT, False, BARE),
        ("by_pointer", 1, abi.Indirection.BY_POINTER, True, BARE),
        ("looks", 0, abi.Indirection.DIRECT, True, BARE),
        ("ip_list_rcv", 0, abi.Indirection.IN_LIST, True, BARE),
        ("list_sort", None, None, False, BARE),
        ("kfree_skbmem", 0, abi.Indirection.DIRECT, False, BARE),
        ("vector_net_start_xmit", 0, abi.Indirection.DIRECT, True, []),
        ("um_timer", 0, abi.Indirection.DIRECT, False, []),
    ],
)
def test_one_answer_for_rules_traces_and_probes(
    small: Image,
    name: str,
    argument: int | None,
    indirection: abi.Indirection | None,
    followed: bool,
    verdicts: list[str],
) -> None:
    one = function(small, name)
    packet = packet_argument(one)
    assert (packet and packet.number, packet and packet.indirection) == (argument, indirection)
    assert (one in choose(small)) is followed
    if packet and packet.in_register:
        assert (why_not_followed(one) == "") is followed
    probes = [one_probe.command for one_probe in probes_of(small, choose(small)) if one_probe.function == one]
    assert [(probe.skb_argument, probe.indirection) for probe in probes] == (
        [(argument, indirection)] if followed else []
    )
    assert sound_verdicts(one, small) == verdicts
    for row in ROWS:  # what `skblab probes` lists is what a rule may be
        text = f"{name} = {row.example}"
        if row.word == "return" and one.return_type == "void":
            text = f"{name} = return"
        if row.word in verdicts:
            readable = argument if verdicts != BARE else abi.NO_PACKET
            assert compiled(small, text).skb_argument == readable
        else:
            with pytest.raises(UnsupportedVerdict):
                compiled(small, text)


def test_what_is_refused_says_where_it_works(small: Image) -> None:
    with pytest.raises(UnsupportedVerdict) as caught:
        compiled(small, "icmp_echo = drop")
    assert caught.value.what == "drop is not sound at icmp_echo()"
    assert caught.value.hint == "drop works at icmp_rcv\naccept, trace, return and stop work everywhere"


@pytest.mark.parametrize(
    ("text", "argument", "frees"),
    [
        ("icmp_rcv = return 0", 0, 1),
        ("icmp_rcv = return 1", 1, 1),
        ("mine_xmit = return -ENOBUFS", -105, 1),
        ("ip_output = return -ENOBUFS", -105, 1),
        ("ip_output = return 0xffffffff", 0xFFFFFFFF, 1),
        ("tcp_sendmsg = return -ERESTARTSYS", -512, 0),
        ("icmp_echo = return 3 @2 if icmp", 3, 0),
        ("list_sort = return", 0, 0),
        ("level = return 255", 255, 0),
        ("protocol = return -0x8000", -0x8000, 0),
    ],
)
def test_a_function_that_does_not_run(small: Image, text: str, argument: int, frees: int) -> None:
    arm = compiled(small, text)
    assert (arm.argument, arm.frees) == (argument, frees)
    assert str(Rule.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("icmp_rcv = return", "icmp_rcv() returns a value (int)"),
        ("icmp_rcv = return -12", "icmp_rcv() hands its packet back to its caller by returning -12"),
        ("mine_xmit = return 16", "mine_xmit() hands its packet back to its caller by returning 16"),
        ("list_sort = return 0", "list_sort() returns nothing"),
        ("tcp_sendmsg = return 0x100000000", "tcp_sendmsg() returns int"),
        ("tcp_sendmsg = return 0 if icmp", "tcp_sendmsg() has no packet to look at"),
        ("um_timer = return 0", "nothing can be probed in um_timer()"),
        ("alloc = return 1", "alloc() returns a pointer"),
        ("alloc = return -4096", "alloc() returns a pointer"),
        ("level = return 256", "level() returns u8"),
        ("protocol = return 0x10000", "protocol() returns __be16"),
        ("protocol = return -0x8001", "protocol() returns __be16"),
        ("icmp_echo = return 0x100000000", "icmp_echo() returns enum skb_drop_reason"),
        ("whether = return 2", "whether() returns a bool"),
        ("whole = return 0", "whole() returns a struct timespec64, more than a register holds"),
    ],
)
def test_what_a_function_cannot_return(small: Image, text: str, said: str) -> None:
    with pytest.raises(UnsupportedVerdict) as caught:
        compiled(small, text)
    assert caught.value.what.startswith(said)


def test_a_function_takes_over_its_packet_by_the_member_that_points_to_it(small: Image) -> None:
    arm = compiled(small, "mine_xmit = drop")
    assert (arm.dropped_returns, arm.taken_from, arm.taken_to, arm.transmits) == (0, abi.LEAST_INT, 14, 1)
    arm = compiled(small, "icmp_rcv = hold")
    assert (arm.taken_from, arm.taken_to, arm.transmits) == (0, abi.MOST_INT, 0)
    assert [one.name for one, _ in owners(small)] == ["ip_rcv", "icmp_rcv", "ip_output", "mine_xmit"]


def test_where_members_disagree_a_function_has_no_contract(small: Image) -> None:
    with pytest.raises(UnsupportedVerdict, match=re.escape("drop is not sound at mine_rcv()")) as caught:
        compiled(small, "mine_rcv = drop")
    assert caught.value.hint.startswith("drop works at mine_xmit\n")


def test_each_member_has_a_contract() -> None:
    assert {f"{structure}.{member}" for structure, member in FUNCTIONS_OF.items()} == BY_MEMBER.keys()
