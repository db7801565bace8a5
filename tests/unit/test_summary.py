"""A packet in one line, as gdb's ``skb`` says it, from bytes that scapy made and from bytes that nobody made."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6ND_NS, IPv6, IPv6ExtHdrHopByHop, IPv6ExtHdrRouting
from scapy.layers.l2 import ARP
from scapy.packet import Packet

from skblab.debugger.inside import dissect

ENDS = {"src": "10.0.0.1", "dst": "10.0.0.2"}
ENDS6 = {"src": "fd00::1", "dst": "fd00::2"}
SYN = {"sport": 4000, "dport": 80, "seq": 7, "window": 512}


@pytest.mark.parametrize(
    ("packet", "line"),
    [
        (IP(**ENDS) / ICMP(id=7, seq=3) / b"12", "10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 3, length 30"),
        (IP(**ENDS) / ICMP(type=3, code=1), "10.0.0.1 > 10.0.0.2: ICMP destination unreachable, length 28"),
        (IP(**ENDS) / ICMP(type=42), "10.0.0.1 > 10.0.0.2: ICMP type 42, length 28"),
        (IP(**ENDS) / TCP(**SYN, flags="S"), "10.0.0.1.4000 > 10.0.0.2.80: Flags [S], seq 7, win 512, length 0"),
        (
            IP(**ENDS, options=b"\1\1\1\0") / TCP(**SYN, flags="PA", ack=9, options=[("NOP", None)] * 4) / b"abc",
            "10.0.0.1.4000 > 10.0.0.2.80: Flags [P.], seq 7, ack 9, win 512, length 3",
        ),
        (IP(**ENDS) / TCP(**SYN, flags=0), "10.0.0.1.4000 > 10.0.0.2.80: Flags [none], seq 7, win 512, length 0"),
        (IP(**ENDS) / UDP(sport=5, dport=53) / b"abcd", "10.0.0.1.5 > 10.0.0.2.53: UDP, length 4"),
        (
            IP(**ENDS, frag=185, proto=17) / (b"x" * 20),
            "10.0.0.1 > 10.0.0.2: fragment at 1480 of protocol 17, length 40",
        ),
        (IP(**ENDS, proto=47) / b"1234", "10.0.0.1 > 10.0.0.2: protocol 47, length 24"),
        (IPv6(**ENDS6) / ICMPv6EchoReply(id=7, seq=3), "fd00::1 > fd00::2: ICMPv6 echo reply, id 7, seq 3, length 48"),
        (
            IPv6(**ENDS6) / ICMPv6ND_NS(tgt="fd00::2"),
            "fd00::1 > fd00::2: ICMPv6 neighbor solicitation, length 64",
        ),
        (
            IPv6(**ENDS6) / IPv6ExtHdrHopByHop() / IPv6ExtHdrRouting() / UDP(sport=5, dport=53) / b"abcd",
            "fd00::1.5 > fd00::2.53: UDP, length 4",
        ),
        (
            ARP(op=1, psrc="10.0.0.1", pdst="10.0.0.2", hwsrc="02:00:00:00:00:01"),
            "ARP, Request who-has 10.0.0.2 tell 10.0.0.1, length 28",
        ),
        (
            ARP(op=2, psrc="10.0.0.1", hwsrc="02:00:00:00:00:01"),
            "ARP, Reply 10.0.0.1 is-at 02:00:00:00:00:01, length 28",
        ),
    ],
)
def test_a_packet_in_one_line(packet: Packet, line: str) -> None:
    data = bytes(packet)
    protocol = {IP: dissect.ETH_P_IP, IPv6: dissect.ETH_P_IPV6, ARP: dissect.ETH_P_ARP}[type(packet)]
    assert dissect.summary(data, protocol, len(data)) == line


def test_what_it_does_not_know() -> None:
    assert dissect.summary(b"\x00\x05", 0x8100, 64) == "protocol 0x8100, length 64"
    assert dissect.summary(b"\x45\x00", dissect.ETH_P_IP, 64) == "IPv4, cut short: 2 bytes"


@given(data=st.binary(max_size=120), protocol=st.sampled_from([*dissect.PROTOCOLS, 0x8100]))
def test_no_bytes_at_all_break_it(data: bytes, protocol: int) -> None:
    assert dissect.summary(data, protocol, len(data))


def test_a_dump_is_tcpdumps() -> None:
    assert dissect.hex_lines(b"GET / HTTP/1.1\r\n\0x") == [
        "0x0000:  4745 5420 2f20 4854 5450 2f31 2e31 0d0a  GET / HTTP/1.1..",
        "0x0010:  0078                                     .x",
    ]
