"""The table of what may be done where, entry by entry, under real traffic: every verdict, and the guest well after."""

import contextlib
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from skblab.agent.functions import CONTRACTS
from skblab.agent.link import MOST_MEMORY_MIB
from skblab.errors import SkblabError, UnsupportedVerdict
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.rule import Rule

if TYPE_CHECKING:
    from skblab.agent.abi import Hit

GUEST4, GUEST6 = "192.168.10.1", "fd00:10::1"
CLOSED_PORT = 9
PATIENCE_S = 0.4
ICMP_RATE_S = 1.0  # the guest sends a host one error a second, six at once: net/ipv4/inetpeer.c inet_peer_xrlim_allow()


def ping(lab: Lab, address: str, wait_s: float) -> bool:
    done = lab.run(["ping", "-n", "-c", "1", "-W", f"{wait_s:g}", address], timeout_s=20)
    return bool(parse_ping(done.stdout))


def refused(lab: Lab, family: int, kind: int, address: str, wait_s: float) -> bool:
    """Whether a closed port says that it is closed; over UDP asked again, for the guest says so only so often."""
    with lab.socket(family, kind) as client:
        client.settimeout(wait_s)
        try:
            client.connect((address, CLOSED_PORT))
            client.settimeout(min(wait_s, ICMP_RATE_S))
            for _ in range(max(1, round(wait_s / ICMP_RATE_S))):
                client.send(b"?")
                with contextlib.suppress(TimeoutError):
                    client.recv(1)
        except ConnectionRefusedError:
            return True
        except TimeoutError:
            pass
        return False


def arp(lab: Lab, wait_s: float) -> bool:
    lab.namespaces.ip(f"neigh flush dev {lab.namespaces.device}")
    return ping(lab, GUEST4, wait_s)


Ask = Callable[[Lab, float], bool]
ECHO4: Ask = lambda lab, wait_s: ping(lab, GUEST4, wait_s)  # noqa: E731
ECHO6: Ask = lambda lab, wait_s: ping(lab, GUEST6, wait_s)  # noqa: E731
TCP4: Ask = lambda lab, wait_s: refused(lab, socket.AF_INET, socket.SOCK_STREAM, GUEST4, wait_s)  # noqa: E731
TCP6: Ask = lambda lab, wait_s: refused(lab, socket.AF_INET6, socket.SOCK_STREAM, GUEST6, wait_s)  # noqa: E731
UDP4: Ask = lambda lab, wait_s: refused(lab, socket.AF_INET, socket.SOCK_DGRAM, GUEST4, wait_s)  # noqa: E731
UDP6: Ask = lambda lab, wait_s: refused(lab, socket.AF_INET6, socket.SOCK_DGRAM, GUEST6, wait_s)  # noqa: E731
ARP: Ask = arp
REQUEST4, REPLY4 = "icmp[icmptype] == icmp-echo", "icmp[icmptype] == icmp-echoreply"
REQUEST6, REPLY6 = "icmp6 and ip6[40] == 128", "icmp6 and ip6[40] == 129"

TRAFFIC: dict[str, tuple[Ask, str]] = {
    "ip_rcv": (ECHO4, REQUEST4),
    "ip_local_deliver": (ECHO4, REQUEST4),
    "ip_local_deliver_finish": (ECHO4, REQUEST4),
    "icmp_rcv": (ECHO4, REQUEST4),
    "tcp_v4_rcv": (TCP4, "tcp"),
    "udp_rcv": (UDP4, "udp"),
    "arp_rcv": (ARP, ""),
    "arp_process": (ARP, ""),
    "ipv6_rcv": (ECHO6, REQUEST6),
    "ip6_input": (ECHO6, REQUEST6),
    "icmpv6_rcv": (ECHO6, REQUEST6),
    "tcp_v6_rcv": (TCP6, "tcp"),
    "udpv6_rcv": (UDP6, "udp"),
    "ip_output": (ECHO4, REPLY4),
    "ip_finish_output2": (ECHO4, REPLY4),
    "ip6_output": (ECHO6, REPLY6),
    "ip6_finish_output2": (ECHO6, REPLY6),
    "__dev_queue_xmit": (ECHO4, REPLY4),
}


def test_every_entry_has_its_traffic() -> None:
    assert TRAFFIC.keys() == CONTRACTS.keys()


@pytest.mark.parametrize("function", CONTRACTS)
def test_every_verdict_at_every_entry(every_lab: Lab, function: str) -> None:
    lab = every_lab
    ask, wanted = TRAFFIC[function]
    assert lab.image.functions.lookup(function), f"{function}() has no code of its own"
    suffix = f" if {wanted}" if wanted else ""
    copies = {"duplicate": 1, "duplicate 3": 3}
    for verdict in ("accept", "trace", "delay 30ms", "rate 1mbit", *copies):
        with contextlib.closing(lab.rule(Rule.parse(f"{function} = {verdict}{suffix}"))) as running:
            assert ask(lab, 5), verdict
        counts = running.armed.counts  # the last ones: an answer comes while other copies are on their way
        assert counts.arrived >= 1, verdict
        assert counts.duplicated == counts.arrived * copies.get(verdict, 0)
        assert counts.held == counts.released == (counts.arrived if verdict.startswith(("delay", "rate")) else 0)
        assert counts.traced == (counts.arrived if verdict == "trace" else 0)
    with contextlib.closing(lab.rule(Rule.parse(f"{function} = drop{suffix}"))) as running:
        assert not ask(lab, PATIENCE_S)
        assert running.armed.counts.dropped >= 1
    with contextlib.closing(lab.rule(Rule.parse(f"{function} = return 0{suffix}"))) as running:
        assert not ask(lab, PATIENCE_S)
        assert running.fired
    with lab.hold(function, wanted) as held:
        assert not ask(lab, PATIENCE_S)
        for packet in held.take(1):
            packet.duplicate(2)
            packet.edit(lambda _: None, fix=False)
            packet.release()
    with lab.hold(function, wanted) as held:
        assert not ask(lab, PATIENCE_S)
        for packet in held.take(1):
            packet.drop()
            assert packet.wait(2)
    assert lab.agent.channel.held == 0
    assert lab.agent.channel.probes == 0
    assert ask(lab, 5)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("icmp_echo = hold", "hold is not sound at icmp_echo()"),
        ("ip_route_input_noref = drop", "drop is not sound at ip_route_input_noref()"),
        ("do_idle = stop", "do_idle() takes no struct sk_buff *"),
        ("tcp_sendmsg = hold", "takes no struct sk_buff *"),
        ("tcp_sendmsg = trace if tcp", "tcp_sendmsg() has no packet to look at"),
        ("vector_net_start_xmit = trace", "nothing can be probed in vector_net_start_xmit()"),
    ],
)  # fmt: skip
def test_elsewhere_it_is_refused_with_the_reason(shared_lab: Lab, text: str, said: str) -> None:
    with pytest.raises(UnsupportedVerdict) as caught:
        shared_lab.rule(text)
    assert said in caught.value.what


@pytest.mark.parametrize(
    ("function", "nearest"),
    [
        ("icmp_echo", "drop works at icmp_rcv\n"),
        ("inet6_csk_xmit", "ipv6_rcv, ip6_input, "),
        ("skb_clone", "__dev_queue_xmit"),
    ],
)  # fmt: skip
def test_it_says_where_the_verdict_works_instead(shared_lab: Lab, function: str, nearest: str) -> None:
    with pytest.raises(UnsupportedVerdict) as caught:
        shared_lab.rule(f"{function} = drop")
    assert nearest in caught.value.hint


def test_elsewhere_a_packet_can_be_traced(shared_lab: Lab) -> None:
    hits: list[Hit] = []
    with shared_lab.agent.rules.arm(Rule("icmp_echo", "trace"), lambda hit, _: hits.append(hit)):
        assert ping(shared_lab, GUEST4, 2)
    assert Packet(hits[0].data, hits[0].protocol).echo
    assert hits[0].data_offset == 28  # behind the ICMP header too


@pytest.mark.parametrize("works", [True, False])
def test_the_largest_guest_that_rules_work_in(every_image: Image, works: bool) -> None:
    with Lab(image=every_image, memory_mib=MOST_MEMORY_MIB if works else 2048) as lab:
        if works:
            with lab.trace(filter="icmp") as tracer, lab.probe("icmp_rcv") as probe:
                assert ping(lab, GUEST4, 2)
                assert probe.take(1)
            assert tracer.trace().steps
            return
        assert ping(lab, GUEST4, 2)
        with pytest.raises(SkblabError, match="cannot do that: arming icmp_rcv") as caught:
            lab.rule("icmp_rcv = drop")
        assert f"--memory {MOST_MEMORY_MIB}" in caught.value.hint
        for _ in range(2):  # a trace that did not come about is not in the next one's way
            with pytest.raises(SkblabError, match="cannot do that: arming functions"), lab.trace():
                pass
        assert ping(lab, GUEST4, 2)
