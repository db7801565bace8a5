"""Conditions on members of a struct sk_buff: the kernel and Python agree on which packets they take."""

import operator
import subprocess
from collections.abc import Callable, Iterator

import pytest

from skblab.errors import RuleError
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.spec import LabSpec

PING = ("ping", "-q", "-c", "1", "-W", "1", "guest")
SIZES = (10, 56, 57, 58, 400)
COMPARED: dict[str, Callable[[int, int], object]] = {
    "==": operator.eq, "!=": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "&": operator.and_,
}  # fmt: skip


@pytest.fixture(scope="module")
def lab(every_image: Image) -> Iterator[Lab]:
    with LabSpec(image=every_image, time="virtual", root="host").start() as lab:
        lab.run(PING)
        yield lab


def took(lab: Lab, function: str, expression: str) -> int:
    """Return how many packets of one ping a filter takes at a function."""
    with lab.rule(f"{function} = trace if {expression}") as rule:
        assert lab.run(PING).returncode == 0
        return rule.counts.arrived


@pytest.mark.parametrize("operation", COMPARED)
def test_numbers_are_compared_as_python_does(lab: Lab, operation: str) -> None:
    with lab.rule(f"icmp_rcv = trace if icmp[0] == 8 where skb->len {operation} 65") as rule:
        for size in SIZES:
            assert lab.run([*PING[:-1], "-s", str(size), "guest"]).returncode == 0
        assert rule.counts.arrived == sum(bool(COMPARED[operation](size + 8, 65)) for size in SIZES)


@pytest.mark.parametrize(
    ("expression", "packets"),
    [
        ('skb->dev->name == "vec0"', 1),
        ('skb->dev->name == "skb0"', 1),
        ('skb->dev->name == "vec"', 0),
        ('skb->dev->name == "vec01"', 0),
        ('skb->dev->name != "vec0"', 1),
        ('icmp[0] == 8 where skb->dev->name == "skb0"', 0),
        ('icmp[0] == 8 where skb->dev->name == "vec0" and skb->len == 84', 1),
        ('icmp[0] == 8 where skb->dev->name == "vec0" and skb->len == 85', 0),
        ("skb->protocol == 0x0800", 2),
        ("skb->protocol == 0x0008", 0),
        ("skb->protocol < 0x0801 and skb->protocol > 0x07ff", 2),
        ("skb->pkt_type == 0", 2),
        ("skb->pkt_type >= 1", 0),
        ("skb->ip_summed <= 3 and skb->cloned == 0", 2),
        ("skb->dev->mtu == 1500", 2),
        ("skb->dev->nd_net.net->ns.inum != 0", 2),
        ("skb->sk->__sk_common.skc_family == 2", 2),
        ("skb->sk->__sk_common.skc_family != 2", 0),
    ],
)
def test_members_of_every_kind(lab: Lab, expression: str, packets: int) -> None:
    assert took(lab, "ip_rcv", expression) == packets


def test_a_null_pointer_fulfils_no_condition(lab: Lab) -> None:
    for comparison in ("== 2", "!= 2", ">= 0"):
        assert took(lab, "icmp_rcv", f"skb->sk->__sk_common.skc_family {comparison}") == 0
    assert took(lab, "icmp_rcv", "skb->sk == 0") == 2


def test_a_packet_whose_socket_has_been_freed() -> None:
    """KASAN finds no fault with the agent: a packet's last call may come after its socket's."""
    kasan = LabSpec(
        image=find_image("6.12", "kasan"), time="virtual", root="host", memory_mib=384,
        commands=["cd /; python3 -m http.server 80"],
    )  # fmt: skip
    with kasan.start() as lab, lab.rule("skb_release_data = trace if skb->sk->sk_mark == 0") as rule:
        for _ in range(3):
            assert lab.run(["curl", "-4", "-s", "-o", "/dev/null", "http://guest/etc/hostname"]).returncode == 0
        assert rule.fired
        assert not lab.new_complaints


def test_a_mark_and_a_signed_member(lab: Lab) -> None:
    assert lab.guest.run(["ip", "rule", "add", "fwmark", "9", "lookup", "main"]).returncode == 0
    with lab.rule("ip_output = trace if icmp where skb->mark == 9") as rule:
        assert lab.run([*PING[:-1], "-m", "9", "guest"]).returncode == 0
        assert rule.counts.arrived == 1
    assert took(lab, "ip_rcv", "skb->skb_iif >= 0") == took(lab, "ip_rcv", "skb->skb_iif > -1") == 2
    assert took(lab, "ip_rcv", "skb->skb_iif < 0") == 0


def test_a_hold_a_policy_and_a_trace(lab: Lab) -> None:
    with lab.hold("ip_rcv", 'icmp where skb->dev->name == "skb0"') as held:
        client = lab.popen(PING, stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        assert "echo reply" in packet.summary()
        packet.release()
        assert client.wait(10) == 0
    with lab.on("ip_rcv", "skb->len == 84", lambda _: "drop") as policy:
        assert lab.run(PING).returncode == 1
        assert policy.decided == 1
    with lab.trace(["ip_rcv", "icmp_rcv"], filter='icmp where skb->dev->name == "skb0"') as tracer:
        assert lab.run(PING).returncode == 0
    first, second, *_ = tracer.trace().steps
    assert [(step.function.name, step.device) for step in (first, second)] == [("ip_rcv", "skb0"), ("icmp_rcv", "skb0")]


def test_another_condition_of_a_rule_in_force(lab: Lab) -> None:
    with lab.hold("icmp_rcv", "icmp where skb->len == 1") as held:
        assert lab.run(PING).returncode == 0
        held.refilter("icmp[0] == 8 where skb->len == 64")
        client = lab.popen(PING, stdout=subprocess.DEVNULL)
        held.take(1)[0].release()
        assert client.wait(10) == 0


@pytest.mark.parametrize(
    ("expression", "what"),
    [
        ("skb->marc == 7", "skb->marc: struct sk_buff has no member marc"),
        ('skb->mark == "7"', "skb->mark is a number"),
        ("skb->dev->name == 7", "skb->dev->name is text"),
        ('skb->dev->name == "12345678901234567"', 'skb->dev->name is never "12345678901234567"'),
        ("skb->dev->nd_net == 7", "skb->dev->nd_net is no number"),
        ("skb->mark == -1", "skb->mark is never -1"),
        ("skb->cloned == 2", "skb->cloned is never 2"),
        ("skb->len.x == 7", "skb->len.x: skb->len is no structure: it is unsigned int"),
    ],
)
def test_what_this_kernel_has_no_member_for(lab: Lab, expression: str, what: str) -> None:
    with pytest.raises(RuleError) as caught:
        lab.rule(f"ip_rcv = drop if {expression}")
    assert caught.value.what == what
