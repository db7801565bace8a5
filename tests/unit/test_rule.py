"""A rule, from text and back; and a caret under every fault."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skblab.edit.named import from_escapes
from skblab.errors import RuleError
from skblab.filter import INSTRUCTION_BYTES, compile_filter
from skblab.rule import LEAST_PERCENT, Inside, Occurrence, Rule
from skblab.verdict import ORDERS

NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,20}", fullmatch=True)
NUMBERS = st.integers(1, 1000)
OCCURRENCES = st.one_of(
    st.builds(lambda first, more: Occurrence(first, first + more), NUMBERS, NUMBERS),
    st.builds(lambda first: Occurrence(first, 0), NUMBERS),
    st.builds(lambda first: Occurrence(first, first), NUMBERS),
    st.builds(lambda every: Occurrence(every=every), NUMBERS),
    st.builds(
        lambda percent, seed: Occurrence(percent=percent, seed=seed),
        st.floats(LEAST_PERCENT, 100),
        st.integers(0, 9),
    ),
)
FILTERS = st.sampled_from([
    "", "icmp", "tcp[tcpflags] & tcp-syn != 0", "host 192.168.10.1 and not port 80", 'skb->dev->name == "inside x"',
])  # fmt: skip
CALLS = st.none() | st.builds(Inside, NAMES, FILTERS)
TIMES = st.integers(1, 10_000_000_000)


@st.composite
def rules(draw: st.DrawFn) -> Rule:
    verdict = draw(st.sampled_from(["accept", "trace", "hold", "delay", "drop", "duplicate", "edit", "stop"]))
    extra: dict[str, st.SearchStrategy[object]] = {
        "hold": st.fixed_dictionaries({"hold_count": st.integers(0, 99), "order": st.sampled_from(ORDERS)}),
        "delay": st.fixed_dictionaries({"delay_ns": TIMES, "jitter_ns": st.just(0) | TIMES}),
        "drop": st.fixed_dictionaries({"reason": st.sampled_from(["", "NO_SOCKET", "7"])}),
        "duplicate": st.fixed_dictionaries({"copies": NUMBERS}),
        "edit": st.fixed_dictionaries({"changes": st.just((("ip.ttl", "3"), ("icmp.seq", "0x10")))}),
    }
    fields = draw(extra.get(verdict, st.just({})))
    return Rule(draw(NAMES), verdict, draw(OCCURRENCES), draw(FILTERS), draw(CALLS), **fields)  # type: ignore[arg-type]


@given(rule=rules())
def test_a_rule_comes_back_as_it_went(rule: Rule) -> None:
    assert Rule.parse(str(rule)) == rule


@given(text=st.text(max_size=60))
def test_any_text_is_a_rule_or_a_fault_with_a_place(text: str) -> None:
    try:
        rule = Rule.parse(text)
    except RuleError as error:
        caret = error.found.rpartition("\n")[2]
    else:
        assert Rule.parse(str(rule)) == rule
        return
    assert caret.strip() == "^"


@pytest.mark.parametrize(
    ("text", "what", "at"),
    [
        ("", "a rule begins with FUNCTION =", 0),
        ("icmp_rcv", "a rule begins with FUNCTION =", 0),
        ("icmp_rcv = ", "a verdict is missing", 11),
        ("icmp_rcv = dorp", "no such verdict: dorp", 11),
        ("icmp_rcv = delay", "a time is missing", 16),
        ("icmp_rcv = delay 3", "not a time: 3", 17),
        ("icmp_rcv = delay 3ms +-x", "not a time: x", 23),
        ("icmp_rcv = hold 8 release up", "no such order: up", 26),
        ("icmp_rcv = hold 8 release", "an order is missing", 25),
        ("icmp_rcv = drop @0", "not an occurrence: @0", 16),
        ("icmp_rcv = drop @5-2", "not an occurrence: @5-2", 16),
        ("icmp_rcv = drop @every x", "after @every: how many, not 'x'", 23),
        ("icmp_rcv = drop @random 10", "not a percentage: 10", 24),
        ("icmp_rcv = hold 9999999999", "how many to hold, not '9999999999'", 16),
        ("icmp_rcv = drop @random 1e-10%", "too rare: 1e-10%", 24),
        ("icmp_rcv = drop @3 fi icmp", "not understood here: fi", 19),
        ("icmp_rcv = drop if", "a filter is missing after if", 18),
        ("icmp_rcv = drop inside", "a function is missing after inside", 22),
        ("icmp_rcv = drop @2 inside 5", "a function is missing after inside", 26),
        ("icmp_rcv = drop inside ip_rcv if", "a filter is missing after if", 32),
        ("icmp_rcv = drop if icmp inside ip_rcv fi udp", "not understood here: fi", 38),
        ("icmp_rcv = dorp inside ip_rcv", "no such verdict: dorp", 11),
        ("icmp_rcv = edit", "a change is missing", 15),
        ("icmp_rcv = edit ip.ttl=3,ttl", "not a change: ttl", 25),
        ('icmp_rcv = edit raw.load="a, b @2', "a quote is not closed", 25),
        ('icmp_rcv = edit raw.load="a"b', 'not a change: raw.load="a"b', 16),
        ('icmp_rcv = edit ip.ttl=3,raw.load=a"b"', 'not a change: raw.load=a"b"', 25),
        ("icmp_rcv = drop 4294967296", "a drop reason's number, not '4294967296'", 16),
        ("icmp_rcv = duplicate 20000000", "how many copies, not '20000000'", 21),
        ("icmp_rcv = delay 99999999999s", "too long: 99999999999s", 17),
        ("icmp_rcv = delay 1ms +-400000000s", "too long: 400000000s", 23),
        (f"icmp_rcv = delay {'9' * 400}s", f"too long: {'9' * 400}s", 17),
        ("icmp_rcv = drop @4294967296", "not an occurrence: @4294967296", 16),
        (f"icmp_rcv = drop @{'1' * 5000}", f"not an occurrence: @{'1' * 5000}", 16),
        (f"icmp_rcv = hold {'1' * 5000}", f"how many to hold, not '{'1' * 5000}'", 16),
        ("icmp_rcv = drop @random 1% seed 4294967296", "after seed: a number, not '4294967296'", 32),
    ],
)  # fmt: skip
def test_a_fault_is_shown_where_it_is(text: str, what: str, at: int) -> None:
    with pytest.raises(RuleError) as caught:
        Rule.parse(text)
    assert caught.value.what == what
    assert caught.value.found == f"{text}\n{' ' * at}^"


@pytest.mark.parametrize(
    ("typed", "value", "load"),
    [
        ('"a, b"', "a, b", b"a, b"),
        ('"say \\"hi\\""', '\\"', b'say "hi"'),
        ('"x#y @2 if"', "x#y @2 if", b"x#y @2 if"),
        ('""', "", b""),
        ("a\\x2cb", "a\\x2cb", b"a,b"),
    ],
)
def test_a_value_in_quotes(typed: str, value: str, load: bytes) -> None:
    rule = Rule.parse(f"icmp_rcv = edit ip.ttl=3,raw.load={typed},icmp.seq=7 @2 if icmp")
    (_, ttl), (name, found), (_, sequence) = rule.changes
    assert (ttl, name, sequence, rule.occurrence, rule.filter) == ("3", "raw.load", "7", Occurrence(2, 2), "icmp")
    assert value in found
    assert from_escapes(name, found) == load
    assert Rule.parse(str(rule)) == rule
    assert Rule.parse(str(Rule("icmp_rcv", "edit", changes=(("raw.load", 'a"b'),)))).changes == (("raw.load", 'a\\"b'),)


@pytest.mark.parametrize(
    "fields",
    [
        {"delay_ns": 1 << 63},
        {"delay_ns": 1, "jitter_ns": -1},
        {"copies": 0},
        {"copies": 1001},
        {"hold_count": 1 << 32},
    ],
)
def test_a_number_that_the_agent_cannot_take(fields: dict[str, int]) -> None:
    with pytest.raises(RuleError):
        Rule("icmp_rcv", "trace", **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("fields", [{"occurrence": "@2"}, {"occurrence": 2}, {"inside": "ip_rcv"}])
def test_text_where_a_part_of_a_rule_is_wanted(fields: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match=r"^no (Occurrence|Inside): "):
        Rule("icmp_rcv", "hold", **fields)


def test_a_verdict_that_there_is_not() -> None:
    with pytest.raises(RuleError, match="no such verdict: dorp") as caught:
        Rule("icmp_rcv", "dorp")
    assert "drop, duplicate" in caught.value.hint


@pytest.mark.parametrize("fields", [{"first": -1}, {"every": 1 << 31}, {"percent": float("nan")}, {"seed": 1 << 40}])
def test_an_occurrence_that_the_agent_cannot_take(fields: dict[str, float]) -> None:
    with pytest.raises(RuleError):
        Occurrence(**fields)  # type: ignore[arg-type]


def test_a_filter_is_libpcaps() -> None:
    assert compile_filter("") == b""
    code = compile_filter("icmp[icmptype] == icmp-echo")
    assert code
    assert len(code) % INSTRUCTION_BYTES == 0
    with pytest.raises(RuleError, match="libpcap does not understand the filter") as caught:
        compile_filter("icmp and 3 icmp")
    assert "syntax error" in caught.value.found
    with pytest.raises(RuleError, match="the filter is too long"):  # libpcap would take minutes
        compile_filter(" or ".join(f"port {port}" for port in range(1, 3000, 2)))
    with pytest.raises(RuleError, match="no zero bytes"):
        compile_filter("icmp\0 nonsense")
    with pytest.raises(RuleError, match="does not understand"):
        compile_filter("icmp \udc80")


MACHINES = {"guest": ["10.0.0.1", "fd00::1"], "host": ["10.0.0.2", "fd00::2"], "a-b": ["10.0.0.3"]}


@pytest.mark.parametrize(
    ("named", "numbered"),
    [
        ("host guest", "host 10.0.0.1 or host fd00::1"),
        ("src host", "src host 10.0.0.2 or src host fd00::2"),
        ("host host and tcp", "(host 10.0.0.2 or host fd00::2) and tcp"),
        ("icmp and not host guest", "icmp and not (host 10.0.0.1 or host fd00::1)"),
        ("ip host guest", "ip host 10.0.0.1"),
        ("ip6 src guest", "ip6 src host fd00::1"),
        ("arp host host", "arp host 10.0.0.2"),
        ("host a-b or 10.0.0.9", "host 10.0.0.3 or host 10.0.0.9"),
        ("host (guest or a-b) and port http", "(host 10.0.0.1 or host fd00::1 or host 10.0.0.3) and port http"),
        ("port http or ssh and dst a-b", "(port http or port ssh) and dst host 10.0.0.3"),
        ("src or dst \\guest", "src or dst host (10.0.0.1 or fd00::1)"),
        ("ip proto \\icmp", "ip proto 1"),
    ],
)
def test_a_filter_names_the_labs_machines(named: str, numbered: str) -> None:
    assert compile_filter(named, MACHINES) == compile_filter(numbered)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("host localhost", "localhost is no word of a filter, and no machine of this lab"),
        ("icmp and nonsense 3", "nonsense is no word of a filter"),
        ("host example.com", "example.com is no word"),
        ("host 10.0.0.1.5", "10.0.0.1.5 is no word"),
        ("host \\localhost", "localhost is no word"),
        ("host dead:80", "dead is no word"),
        ("host a:b:c:d:e:localhost", "no address: a:b:c:d:e:"),
        ("port 80 and tcp and localhost", "localhost is no word"),
        ("ip6 host a-b", "a-b has no IPv6 address"),
        ("net guest", "net wants an address, not the name guest"),
        ("ether host guest", "ether wants an address, not the name guest"),
        ("gateway localhost", "gateway wants an address, not the name localhost"),
        ("port localhost", "libpcap does not understand"),
    ],
)
def test_a_filters_other_names_are_refused(text: str, words: str) -> None:
    """Else this machine's resolver would be asked, of what has nothing to do with the lab."""
    with pytest.raises(RuleError) as caught:
        compile_filter(text, MACHINES)
    assert caught.value.what.startswith(words)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("icmp_rcv", Rule("icmp_rcv", "hold")),
        (" ip_output if icmp[0] == 8", Rule("ip_output", "hold", filter="icmp[0] == 8")),
        ("ip_rcv @2-", Rule("ip_rcv", "hold", Occurrence(2, 0))),
        ("ip_output inside icmp_rcv", Rule("ip_output", "hold", inside=Inside("icmp_rcv"))),
        ("ip_rcv = delay 1s", Rule("ip_rcv", "delay", delay_ns=1_000_000_000)),
    ],
)
def test_holding_goes_without_saying(text: str, rule: Rule) -> None:
    assert Rule.parse_hold(text) == rule


@pytest.mark.parametrize("text", ["icmp_rcv iff icmp", "icmp_rcv if", "= hold", "a b"])
def test_what_does_not_say_what_to_hold(text: str) -> None:
    with pytest.raises(RuleError):
        Rule.parse_hold(text)
