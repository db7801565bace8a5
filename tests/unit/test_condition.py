"""Conditions at the end of a filter: what they say, and a caret under what is wrong."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skblab.condition import MOST, Condition, conditions, split
from skblab.errors import RuleError
from skblab.rule import Rule


@pytest.mark.parametrize(
    ("expression", "pcap", "wanted"),
    [
        ("icmp", "icmp", []),
        ("", "", []),
        ("skb->mark == 7", "", [Condition("skb->mark", "==", 7)]),
        ("icmp where skb->mark & 0x10", "icmp", [Condition("skb->mark", "&", 16)]),
        ("where skb->len>=100", "", [Condition("skb->len", ">=", 100)]),
        ('tcp port 80  where skb -> dev->name != "vec0"', "tcp port 80", [Condition("skb->dev->name", "!=", "vec0")]),
        ('skb->dev->name == "a b" and skb->sk != 0', "",
         [Condition("skb->dev->name", "==", "a b"), Condition("skb->sk", "!=", 0)]),
        ("skb->dev->nd_net.net->ns.inum == 4026531840", "",
         [Condition("skb->dev->nd_net.net->ns.inum", "==", 4026531840)]),
        ("host nowhere", "host nowhere", []),
    ],
)  # fmt: skip
def test_a_filter_and_its_conditions(expression: str, pcap: str, wanted: list[Condition]) -> None:
    assert split(expression)[0] == pcap
    assert conditions(expression) == wanted


@pytest.mark.parametrize(
    ("expression", "what", "under"),
    [
        ("icmp where", "a condition is missing after where", ""),
        ("icmp where mark == 7", "a member of the packet's struct sk_buff is missing", "mark"),
        ("skb->mark", "a comparison is missing", ""),
        ("skb->mark = 7", "a comparison is missing", "= 7"),
        ("skb->mark ==", "a value is missing", ""),
        ("skb->mark == seven", "not a number: seven", "seven"),
        ("skb->mark == 7 or skb->mark == 8", "not understood here: or", "or skb"),
        ("skb->mark == 7 and", "a member of the packet's struct sk_buff is missing", ""),
        ('skb->dev->name > "a"', "text is compared by == and != alone, not by >", '"a"'),
        (f'skb->dev->name == "{32 * "a"}"', "too long", '"aaa'),
        ("skb->mark == 0x10000000000000000", "too large: 0x10000000000000000", "0x1"),
        (" and ".join(["skb->mark == 7"] * (MOST + 1)), f"{MOST + 1} conditions are too many", ""),
    ],
)
def test_what_is_no_condition(expression: str, what: str, under: str) -> None:
    with pytest.raises(RuleError) as caught:
        conditions(expression)
    assert caught.value.what == what
    if under:
        line, caret = caught.value.found.splitlines()
        assert line[caret.index("^") :].startswith(under)


@given(st.text(max_size=60))
def test_any_text_is_conditions_or_a_clear_error(text: str) -> None:
    with contextlib.suppress(RuleError):
        conditions(f"where {text}")


def test_a_rule_keeps_its_conditions() -> None:
    text = 'ip_rcv = drop @2 if icmp where skb->dev->name == "vec0" and skb->mark & 3'
    assert str(Rule.parse(text)) == text
    assert Rule.parse_hold("ip_rcv if skb->mark == 7").filter == "skb->mark == 7"
