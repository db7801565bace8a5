"""A filter in the kernel takes of a frame what libpcap takes of it in an Ethernet capture, for thousands of pairs."""

import ctypes
from collections.abc import Iterator
from functools import cache

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.compat import raw
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_Router_Alert
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import ARP, LLC, STP, Dot3, Ether
from scapy.packet import Packet as Layers
from scapy.packet import Raw

from skblab import filter as filters
from skblab.errors import RuleError
from skblab.filter import compile_filter
from skblab.image.recipe import SERIES
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.rule import Rule

PRIMITIVES = (
    "ip",
    "ip6",
    "arp",
    "rarp",
    "icmp",
    "icmp6",
    "tcp",
    "udp",
    "igmp",
    "stp",
    "port 80",
    "src port 53",
    "tcp dst port 80",
    "udp port 53",
    "portrange 50-90",
    "host 10.0.0.1",
    "src host 10.0.0.2",
    "dst net 10.0.0.0/8",
    "net 192.168.0.0/16",
    "ip6 host fe80::1",
    "ether proto 0x800",
    "ether proto 0x86dd",
    "ether src 02:00:00:00:00:01",
    "ether host 02:00:00:00:00:02",
    "ether broadcast",
    "ether multicast",
    "broadcast",
    "multicast",
    "ip multicast",
    "less 60",
    "greater 100",
    "len > 64",
    "len == 98",
    "ip[0] & 0xf != 5",
    "ip[8] < 3",
    "ip[6:2] & 0x1fff != 0",
    "tcp[tcpflags] & tcp-syn != 0",
    "udp[4:2] > 20",
    "icmp[icmptype] == icmp-echo",
    "ip6[6] == 58",
    "link[0] & 1 == 1",
    "ether[12:2] < 1500",
    "ip proto 47",
    "ip6 proto 6",
    "ip host 10.0.0.1 or arp",
)


class Header(ctypes.Structure):
    """struct pcap_pkthdr."""

    _fields_ = (
        ("seconds", ctypes.c_long),
        ("microseconds", ctypes.c_long),
        ("captured", ctypes.c_uint),
        ("length", ctypes.c_uint),
    )


@cache
def compiled(expression: str) -> filters._Program:
    library = filters._libpcap()
    handle = ctypes.c_void_p(library.pcap_open_dead(filters.DLT_EN10MB, filters.WHOLE_PACKET))
    program = filters._Program()
    text = ctypes.c_char_p(expression.encode())
    assert library.pcap_compile(handle, ctypes.byref(program), text, 1, ctypes.c_uint(filters.NETMASK_UNKNOWN)) == 0
    return program


def libpcap_takes(expression: str, frame: bytes) -> bool:
    header = Header(0, 0, len(frame), len(frame))
    program = compiled(expression)
    return bool(filters._libpcap().pcap_offline_filter(ctypes.byref(program), ctypes.byref(header), frame))


def link() -> st.SearchStrategy[Layers]:
    addresses = st.sampled_from(["02:00:00:00:00:01", "02:00:00:00:00:02", "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
    return st.builds(Ether, src=addresses, dst=addresses)


def network() -> st.SearchStrategy[Layers]:
    four = st.sampled_from(["10.0.0.1", "10.0.0.2", "192.168.1.1", "224.0.0.1", "255.255.255.255"])
    six = st.sampled_from(["fe80::1", "fe80::2", "ff02::1"])
    options = st.sampled_from([[], [IPOption_Router_Alert()]])
    ip = st.builds(IP, src=four, dst=four, ttl=st.integers(0, 4), frag=st.sampled_from([0, 0, 0, 10]), options=options)
    ip6 = st.builds(IPv6, src=six, dst=six)
    extended = st.builds(lambda a, b: a / b, ip6, st.sampled_from([IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment()]))
    return st.one_of(ip, ip6, extended)


def transport() -> st.SearchStrategy[Layers]:
    ports = st.sampled_from([53, 80, 443, 60])
    return st.one_of(
        st.builds(UDP, sport=ports, dport=ports),
        st.builds(TCP, sport=ports, dport=ports, flags=st.sampled_from(["S", "SA", "A", "R"])),
        st.builds(ICMP, type=st.sampled_from([0, 8])),
        st.just(ICMPv6EchoRequest()),
        st.just(Raw()),
    )


def frames() -> st.SearchStrategy[bytes]:
    load = st.binary(max_size=120).map(Raw)
    whole = st.builds(
        lambda *layers: raw(layers[0] / layers[1] / layers[2] / layers[3]), link(), network(), transport(), load
    )
    arp = st.builds(lambda a, b: raw(a / b), link(), st.builds(ARP, psrc=st.sampled_from(["10.0.0.1", "10.0.0.9"])))
    stp = st.just(raw(Dot3(dst="01:80:c2:00:00:00") / LLC() / STP()))
    typed = st.builds(
        lambda kind, data: bytes(12) + kind + data,
        st.sampled_from([b"\x08\0", b"\x86\xdd", b"\x08\x06", b"\x88\xcc", b"\0\x26", b"\x06\0"]),
        st.binary(min_size=2, max_size=80),
    )
    cut = st.builds(lambda frame, size: frame[: max(size, 16)], whole, st.integers(16, 80))
    return st.one_of(whole, arp, stp, typed, cut)


def expressions() -> st.SearchStrategy[str]:
    def join(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
        both = st.builds(lambda a, word, b: f"({a}) {word} ({b})", inner, st.sampled_from(["and", "or"]), inner)
        return st.one_of(both, inner.map(lambda one: f"not ({one})"))

    return st.recursive(st.sampled_from(PRIMITIVES), join, max_leaves=5)


@pytest.fixture(scope="module", params=SERIES)
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(image=find_image(request.param)) as lab:
        lab.agent.wait_ready()
        yield lab


def disagreements(lab: Lab, expression: str, some: list[bytes]) -> list[str]:
    wrong = []
    with lab.agent.arm_measured(Rule("agent_measured", "accept", filter=expression)) as armed:
        for frame in some:
            before = armed.counts.arrived
            lab.agent.measure_ns(frame, 1)
            taken = armed.counts.arrived - before == 1
            if taken is not libpcap_takes(expression, frame):
                wrong.append(f"{expression}: the kernel {'takes' if taken else 'leaves'} {frame.hex()}")
    return wrong


@pytest.mark.slow
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(expression=expressions(), some=st.lists(frames(), min_size=10, max_size=25))
def test_the_kernel_takes_what_libpcap_takes(lab: Lab, expression: str, some: list[bytes]) -> None:
    try:
        compile_filter(expression)
    except RuleError as error:
        assert "libpcap" in error.what  # noqa: PT017 - an expression that can never be true, by libpcap's own word
        return
    assert not disagreements(lab, expression, some)


def samples() -> Iterator[bytes]:
    """Yield a frame of each kind of which a primitive speaks."""
    one, two = "02:00:00:00:00:01", "02:00:00:00:00:02"
    out, back = Ether(src=one, dst=two), Ether(src=two, dst=one)
    four, six = IP(src="10.0.0.1", dst="10.0.0.2"), IPv6(src="fe80::1", dst="fe80::2")
    for layers in (
        out / four / ICMP() / Raw(bytes(56)),
        back / IP(src="10.0.0.2", dst="192.168.1.1", ttl=1) / UDP(sport=53, dport=53),
        out / four / TCP(sport=80, dport=80, flags="S"),
        out / IP(frag=10) / Raw(bytes(200)),
        out / IP(proto=47) / Raw(bytes(9)),
        out / IP(dst="224.0.0.1", proto=2, options=[IPOption_Router_Alert()]) / Raw(bytes(8)),
        back / six / ICMPv6EchoRequest(),
        out / IPv6(src="fe80::9", dst="ff02::1") / TCP(dport=80),
        Ether(dst="ff:ff:ff:ff:ff:ff", src=one) / ARP(psrc="10.0.0.1"),
        Ether(dst="01:00:5e:00:00:01", src=two) / four / UDP(dport=60) / Raw(bytes(40)),
        Dot3(dst="01:80:c2:00:00:00") / LLC() / STP(),
        Ether(type=0x8035) / ARP(op=3),
    ):
        yield raw(layers)


@pytest.mark.parametrize("expression", PRIMITIVES)
def test_each_primitive_takes_something_and_leaves_something(lab: Lab, expression: str) -> None:
    """Or the test above would say nothing of it."""
    assert not disagreements(lab, expression, [*samples()])
    assert {libpcap_takes(expression, frame) for frame in samples()} == {True, False}


def test_a_bridges_hello_is_no_ip(lab: Lab) -> None:
    hello = bytes.fromhex(
        "0180c2000000001906eab885002642420300000000008001001906eab880000000008001001906eab88080050000140002000f"
    )
    assert not disagreements(lab, "icmp", [hello])
    assert not libpcap_takes("icmp", hello)
    wrong_version = bytes(12) + b"\x08\0" + b"\x65" + bytes(19)
    assert libpcap_takes("ip", wrong_version)
    assert not disagreements(lab, "ip", [wrong_version])


def test_what_a_filter_cannot_know_is_refused() -> None:
    for expression, what in (
        ("vlan 5 and icmp", "vlan in a filter"),
        ("mpls", "mpls in a filter"),
        ("ip protochain 6", "a filter with a loop"),
    ):
        with pytest.raises(RuleError, match=what):
            compile_filter(expression)
