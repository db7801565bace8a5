"""A packet in one line, as tcpdump prints it: for thousands of packets, and for random bytes."""

import re
import struct
import subprocess
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6MLDMultAddrRec,
    ICMPv6MLReport2,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6ND_RA,
    ICMPv6ND_Redirect,
    ICMPv6ND_RS,
    ICMPv6PacketTooBig,
    ICMPv6ParamProblem,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
)
from scapy.layers.l2 import ARP
from scapy.packet import Packet, Raw

from agent.malformed import Frames
from skblab.debugger.inside import dump
from skblab.host import process
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, summary

CUT = re.compile(r",? \[\||\[\||\[remaining")
PROTOCOLS = {IP: ETH_P_IP, IPv6: ETH_P_IPV6, ARP: ETH_P_ARP}
EXAMPLES, PACKETS_EACH = 40, 60
# Those of which tcpdump prints what is in them have other ports: 4000 and below 10 are nobody's.
PORTS = st.sampled_from([1, 2, 5, 9, 4000, 4001, 40000])
U8, U16, U32 = st.integers(0, 0xFF), st.integers(0, 0xFFFF), st.integers(0, 0xFFFFFFFF)
PAYLOADS = st.one_of(st.just(b""), st.binary(max_size=20))
ADDRESSES = st.sampled_from(["10.0.0.1", "10.0.0.2", "192.168.10.254", "0.0.0.0", "224.0.0.1"])
ADDRESSES6 = st.sampled_from(["fd00::1", "fe80::1:2", "::", "ff02::1", "::ffff:10.0.0.1", "2001:db8:0:1::5"])
OPTIONS = st.lists(
    st.one_of(
        st.just(("NOP", None)),
        st.just(("SAckOK", b"")),
        st.builds(lambda n: ("MSS", n), U16),
        st.builds(lambda n: ("WScale", n), U8),
        st.builds(lambda a, b: ("Timestamp", (a, b)), U32, U32),
        st.builds(
            lambda blocks: ("SAck", tuple(blocks)),
            st.lists(U32, min_size=2, max_size=4).filter(lambda one: not len(one) % 2),
        ),
    ),
    max_size=3,
)
TCPS = st.builds(
    lambda sport, dport, seq, ack, flags, window, urgent, options, load: (
        TCP(sport=sport, dport=dport, seq=seq, ack=ack, flags=flags, window=window, urgptr=urgent, options=options)
        / load
    ),
    PORTS,
    PORTS,
    U32,
    U32,
    U8,
    U16,
    U16,
    OPTIONS,
    PAYLOADS,
)
UDPS = st.builds(
    lambda sport, dport, length, load: UDP(sport=sport, dport=dport, len=length) / load,
    PORTS,
    PORTS,
    st.one_of(st.none(), st.integers(0, 40)),
    PAYLOADS,
)
QUOTED = st.builds(lambda src, dst, inner: IP(src=src, dst=dst) / inner, ADDRESSES, ADDRESSES, st.one_of(TCPS, UDPS))
QUOTED6 = st.builds(lambda a, b, inner: IPv6(src=a, dst=b) / inner, ADDRESSES6, ADDRESSES6, st.one_of(TCPS, UDPS))
ICMPS = st.one_of(
    st.builds(
        lambda kind, a, b, load: ICMP(type=kind, id=a, seq=b) / load, st.sampled_from([0, 8]), U16, U16, PAYLOADS
    ),
    st.builds(
        lambda code, mtu, inner: ICMP(type=3, code=code, nexthopmtu=mtu) / inner, st.integers(0, 18), U16, QUOTED
    ),
    st.builds(lambda code, gw, inner: ICMP(type=5, code=code, gw=gw) / inner, st.integers(0, 5), ADDRESSES, QUOTED),
    st.builds(lambda code, inner: ICMP(type=11, code=code) / inner, st.integers(0, 3), QUOTED),
    st.builds(lambda code, at, inner: ICMP(type=12, code=code, ptr=at) / inner, st.integers(0, 2), U8, QUOTED),
    st.builds(
        lambda kind, load: ICMP(type=kind) / Raw(load.ljust(16)), st.sampled_from([1, 4, 10, 15, 16, 40, 99]), PAYLOADS
    ),
)
ICMP6S = st.one_of(
    st.builds(lambda a, b, load: ICMPv6EchoRequest(id=a, seq=b, data=load), U16, U16, PAYLOADS),
    st.builds(lambda target: ICMPv6ND_NS(tgt=target), ADDRESSES6),
    st.builds(lambda target: ICMPv6ND_NA(tgt=target), ADDRESSES6),
    st.builds(lambda a, b: ICMPv6ND_Redirect(tgt=a, dst=b), ADDRESSES6, ADDRESSES6),
    st.sampled_from([ICMPv6ND_RS(), ICMPv6ND_RA()]),
    st.builds(lambda n: ICMPv6MLReport2(records=[ICMPv6MLDMultAddrRec(dst="ff02::1")] * n), st.integers(0, 3)),
    st.builds(lambda code, inner: ICMPv6DestUnreach(code=code) / inner, st.integers(0, 4), QUOTED6),
    st.builds(lambda mtu, inner: ICMPv6PacketTooBig(mtu=mtu) / inner, U32, QUOTED6),
    st.builds(lambda code, inner: ICMPv6TimeExceeded(code=code) / inner, st.integers(0, 3), QUOTED6),
    st.builds(lambda code, at, inner: ICMPv6ParamProblem(code=code, ptr=at) / inner, st.integers(0, 5), U32, QUOTED6),
)
IP4S = st.builds(
    lambda src, dst, options, more, inner: IP(src=src, dst=dst, options=options, flags="MF" if more else 0) / inner,
    ADDRESSES,
    ADDRESSES,
    st.sampled_from([b"", b"\1\1\1\0"]),
    st.booleans(),
    st.one_of(TCPS, UDPS, ICMPS),
)
LATER4 = st.builds(lambda at, load: IP(frag=at, proto=17) / Raw(load), st.integers(1, 8000), PAYLOADS)
HEADERS6 = st.sampled_from(
    [
        (),
        (IPv6ExtHdrHopByHop(),),
        (IPv6ExtHdrDestOpt(),),
        (IPv6ExtHdrFragment(m=1, id=9),),
        (IPv6ExtHdrHopByHop(), IPv6ExtHdrFragment(offset=181)),
    ]
)
IP6S = st.builds(
    lambda a, b, headers, inner: sum_of([IPv6(src=a, dst=b), *headers, inner]),
    ADDRESSES6,
    ADDRESSES6,
    HEADERS6,
    st.one_of(TCPS, UDPS, ICMP6S),
)
ARPS = st.builds(
    lambda op, a, b, mac: ARP(op=op, psrc=a, pdst=b, hwsrc="02:00:00:00:00:01", hwdst=mac),
    st.sampled_from([1, 2, 3, 4, 8, 9]),
    ADDRESSES,
    ADDRESSES,
    st.sampled_from(["00:00:00:00:00:00", "02:00:00:00:00:02"]),
)
INNER = st.builds(lambda one, inner: IP(src=one) / inner, ADDRESSES, st.one_of(IP4S, IP6S))
OTHERS = st.builds(lambda kind, load: IP(proto=kind) / Raw(load), st.sampled_from([99, 200, 253]), PAYLOADS)
PACKETS = st.one_of(IP4S, IP4S, LATER4, IP6S, IP6S, ARPS, INNER, OTHERS)
# A packet, and how many of its bytes were captured.
CAPTURES = st.tuples(PACKETS, st.one_of(st.none(), st.none(), st.integers(20, 128)))


def sum_of(layers: Sequence[Packet]) -> Packet:
    whole = layers[0].copy()
    for layer in layers[1:]:
        whole /= layer.copy()
    return whole


def tcpdump(captures: Sequence[tuple[bytes, int, int]]) -> list[str]:
    """Return tcpdump's lines of packets: their first bytes, their protocols, and their lengths."""
    file = struct.pack("<IHHIIII", 0xA1B2C3D4, 2, 4, 0, 0, 1 << 18, 1)
    for data, protocol, length in captures:
        frame = bytes(12) + struct.pack("!H", protocol) + data
        file += struct.pack("<IIII", 0, 0, len(frame), 14 + length) + frame
    running = process.start(
        ["tcpdump", "-nn", "-S", "-t", "-r", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    said, _ = running.communicate(file, timeout=30)
    lines = [line for line in said.decode(errors="replace").splitlines() if line.strip() and line[0] != "\t"]
    assert len(lines) == len(captures)
    return lines


def alike(line: str) -> str:
    """Return tcpdump's line without its text about the file, and with single blanks."""
    line = re.sub(r"^(IP6?|) *(truncated-ip6? - \d+ bytes missing!)? *", "", line)
    return " ".join(line.split())


def without_fragment(line: str) -> str:
    """Return skblab's line without what tcpdump does not print."""
    return re.sub(r", fragment at \d+(, length \d+)?", "", line)


def compare(captures: Sequence[tuple[bytes, int, int]]) -> None:
    """Compare skblab's lines with tcpdump's. In a header that is cut short, they may stop at different fields."""
    for (data, protocol, length), line in zip(captures, tcpdump(captures), strict=True):
        ours, theirs = without_fragment(summary(data, protocol, length)), alike(line)
        if len(data) < length and ours != theirs:
            ours, theirs = (CUT.split(one)[0] for one in (ours, theirs))
            assert ours.startswith(theirs) or theirs.startswith(ours), data.hex()
        else:
            assert ours == theirs, data.hex()


@settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(some=st.lists(CAPTURES, min_size=PACKETS_EACH, max_size=PACKETS_EACH))
def test_a_packet_in_one_line_is_tcpdumps_line(some: list[tuple[Packet, int | None]]) -> None:
    compare([(bytes(one)[:captured], PROTOCOLS[type(one)], len(bytes(one))) for one, captured in some])


ENDS, ENDS6 = {"src": "10.0.0.1", "dst": "10.0.0.2"}, {"src": "fd00::1", "dst": "fd00::2"}
SYN = {"sport": 4000, "dport": 80, "seq": 7, "window": 512}


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (
            IP(**ENDS) / TCP(**SYN, flags="S", options=[("MSS", 1460), ("Timestamp", (1, 2)), ("WScale", 7)]),
            (
                "10.0.0.1.4000 > 10.0.0.2.80: Flags [S], seq 7, win 512, "
                "options [mss 1460,TS val 1 ecr 2,wscale 7,eol], length 0"
            ),
        ),
        (
            IP(**ENDS) / TCP(**SYN, flags="PA", ack=9) / b"GET / ",
            "10.0.0.1.4000 > 10.0.0.2.80: Flags [P.], seq 7:13, ack 9, win 512, length 6",
        ),
        (IP(**ENDS) / UDP(sport=5, dport=53) / b"abcd", "10.0.0.1.5 > 10.0.0.2.53: UDP, length 4"),
        (
            IP(**ENDS, frag=185, proto=17) / (b"x" * 20),
            "10.0.0.1 > 10.0.0.2: ip-proto-17, fragment at 1480, length 20",
        ),
        (
            IP(**ENDS, flags="MF") / UDP(sport=5, dport=9, len=3000) / b"abcd",
            "10.0.0.1.5 > 10.0.0.2.9: UDP, length 2992, fragment at 0",
        ),
        (IPv6(**ENDS6) / ICMPv6EchoReply(id=7), "fd00::1 > fd00::2: ICMP6, echo reply, id 7, seq 0, length 8"),
        (ARP(psrc="10.0.0.1", pdst="10.0.0.2"), "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28"),
    ],
)
def test_a_packet_in_one_line(packet: Packet, line: str) -> None:
    assert summary(bytes(packet), PROTOCOLS[type(packet)]) == line


def test_what_it_does_not_know() -> None:
    assert summary(b"\x00\x05", 0x8100, 64) == "ethertype 0x8100, length 64"
    assert summary(b"\x45\x00", ETH_P_IP, 64) == "[|ip]"


@given(data=st.binary(max_size=120), protocol=st.sampled_from([*PROTOCOLS.values(), 0x8100]))
def test_no_bytes_at_all_break_it(data: bytes, protocol: int) -> None:
    assert summary(data, protocol)


def test_what_is_malformed_has_one_line() -> None:
    frames = Frames(1, bytes(6), bytes(6), (bytes(4), bytes(4)), (bytes(16), bytes(16)))
    for _ in range(2000):
        frame = frames.next()
        said = summary(frame[14:], int.from_bytes(frame[12:14]))
        assert said
        assert said.isprintable()


def test_a_dump_is_tcpdumps() -> None:
    assert dump.hex_lines(b"GET / HTTP/1.1\r\n\0x") == [
        "0x0000:  4745 5420 2f20 4854 5450 2f31 2e31 0d0a  GET / HTTP/1.1..",
        "0x0010:  0078                                     .x",
    ]
