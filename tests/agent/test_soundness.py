"""The table of what may be done where, entry by entry, under real traffic: every verdict, and the guest well after."""

import contextlib
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from skblab.agent.contracts import CONTRACTS
from skblab.agent.functions import owners
from skblab.agent.link import MOST_MEMORY_MIB
from skblab.errors import SkblabError, UnsupportedVerdict
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.spec import LabSpec

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


# Nodes of one guest, and tunnels, VLANs and a router between them.
CROSSROADS = """
set -e
sysctl -qw net.ipv4.icmp_echo_ignore_broadcasts=0 net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1
ip netns add far
ip link add far0 type veth peer name eth0 netns far
ip addr add 10.9.0.1/24 dev far0 && ip addr add fd09::1/64 dev far0 nodad && ip link set far0 up
ip -n far addr add 10.9.0.2/24 dev eth0 && ip -n far addr add fd09::2/64 dev eth0 nodad && ip -n far link set eth0 up
ip -n far route add default via 10.9.0.1 && ip -n far route add default via fd09::1
ip -n host route add 10.9.0.0/24 via 192.168.10.1 && ip -n host route add fd09::/64 via fd00:10::1
ip -n host route add 224.0.0.0/4 dev skb0
ends() {
    ip addr add $2.1/24 dev $1 && ip link set $1 up
    ip -n host addr add $2.2/24 dev $1 && ip -n host link set $1 up
}
ip link add link vec0 name v5 type vlan id 5 && ip -n host link add link skb0 name v5 type vlan id 5 && ends v5 10.5.0
ip link add vx type vxlan id 7 dstport 4789 remote 192.168.10.254 local 192.168.10.1 dev vec0
ip -n host link add vx type vxlan id 7 dstport 4789 remote 192.168.10.1 local 192.168.10.254 dev skb0 && ends vx 10.7.0
ip link add ti type ipip remote 192.168.10.254 local 192.168.10.1
ip -n host link add ti type ipip remote 192.168.10.1 local 192.168.10.254 && ends ti 10.4.0
"""


def between_nodes(lab: Lab, wait_s: float) -> bool:
    ping_of_b = lab.guest.popen(["ping", "-n", "-c", "1", "-W", f"{wait_s:g}", "b"], node="a")
    with ping_of_b:
        return ping_of_b.wait() == 0


def of_itself(lab: Lab, wait_s: float) -> bool:
    return not lab.guest.run(["ping", "-n", "-c", "1", "-W", f"{wait_s:g}", "127.0.0.1"]).returncode


def to(address: str) -> Ask:
    return lambda lab, wait_s: ping(lab, address, wait_s)


ROADS: dict[str, tuple[Ask, str]] = {
    "veth_xmit": (ECHO4, REQUEST4),
    "br_dev_xmit": (ECHO4, REQUEST4),
    "br_handle_frame_finish": (between_nodes, REQUEST4),
    "br_forward_finish": (between_nodes, REQUEST4),
    "br_dev_queue_push_xmit": (between_nodes, REQUEST4),
    "loopback_xmit": (of_itself, REQUEST4),
    "ip_forward": (to("10.9.0.2"), REQUEST4),
    "ip6_forward": (to("fd09::2"), REQUEST6),
    "ip_mc_output": (to("224.0.0.1"), REQUEST4),
    "vlan_dev_hard_start_xmit": (to("10.5.0.1"), REQUEST4),
    "vxlan_xmit": (to("10.7.0.1"), REQUEST4),
    "vxlan_rcv": (to("10.7.0.1"), ""),
    "ipip_tunnel_xmit": (to("10.4.0.1"), REQUEST4),
    "ipip_rcv": (to("10.4.0.1"), ""),
    "tunnel4_rcv": (to("10.4.0.1"), ""),
}
# By the same members, but nobody answers what they get.
NO_ROADS = {
    "blackhole_netdev_xmit": "frees what it gets",
    "dummy_xmit": "frees what it gets",
    "igmp_rcv": "answers to a router, later",
    "llc_rcv": "spanning trees",
    "tun_net_xmit": "gives it to a program",
    "tunnel64_rcv": "IPv6 in IPv4: sit is not in the default variant",
    "udplite_rcv": "UDP-Lite: gone in 7.3",
    "udplitev6_rcv": "UDP-Lite: gone in 7.3",
}


@pytest.fixture(scope="module")
def crossroads(every_image: Image) -> Iterator[Lab]:
    with LabSpec(image=every_image, time="virtual", root="host", nodes=["a", "b"]).start() as lab:
        made = lab.guest.run(["sh", "-c", CROSSROADS])
        assert made.returncode == 0, made.stderr
        yield lab


def test_every_entry_has_its_traffic(every_image: Image) -> None:
    names = {function.name for function, _ in owners(every_image)}
    assert names - NO_ROADS.keys() == {*TRAFFIC, *ROADS}
    assert TRAFFIC.keys() <= CONTRACTS.keys() <= {*TRAFFIC, *ROADS}


@pytest.mark.parametrize("function", TRAFFIC)
def test_every_verdict_at_every_entry(every_lab: Lab, function: str) -> None:
    try_every_verdict(every_lab, function, *TRAFFIC[function])


@pytest.mark.parametrize("function", ROADS)
def test_every_verdict_at_every_entry_on_other_roads(crossroads: Lab, function: str) -> None:
    try_every_verdict(crossroads, function, *ROADS[function])


def try_every_verdict(lab: Lab, function: str, ask: Ask, wanted: str) -> None:
    assert lab.image.functions.lookup(function), f"{function}() has no code of its own"
    assert ask(lab, 5)  # and neighbours are known
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
