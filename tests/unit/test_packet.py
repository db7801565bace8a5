"""A packet as one line, from bytes made by scapy and from random bytes."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6, IPv6ExtHdrHopByHop

from agent.malformed import Frames
from skblab.edit import edited
from skblab.packet import Packet, echo_request
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6

SENT = struct.pack("=qq", 1_700_000_000, 250_000) + bytes(40)


def test_an_echo_request_is_told_as_tcpdump_tells_it() -> None:
    packet = Packet(bytes(IP(src="192.168.10.254", dst="192.168.10.1") / ICMP(id=7, seq=3) / SENT), ETH_P_IP)
    assert packet.summary() == "192.168.10.254 > 192.168.10.1: ICMP echo request, id 7, seq 3, length 64"
    assert packet.echo == ("echo request", 7, 3)
    assert packet.ping_sent_s == 1_700_000_000.25


def test_an_echo_request_behind_ip_options_is_found() -> None:
    packet = Packet(
        bytes(IP(src="10.0.0.1", dst="10.0.0.2", options=b"\x01\x01\x01\x00") / ICMP(id=9, seq=1)), ETH_P_IP
    )
    assert packet.echo == ("echo request", 9, 1)


def test_an_icmpv6_echo_request_is_found() -> None:
    packet = Packet(bytes(IPv6(src="fd00:10::254", dst="fd00:10::1") / ICMPv6EchoRequest(id=7, seq=3)), ETH_P_IPV6)
    assert packet.summary() == "fd00:10::254 > fd00:10::1: ICMP6, echo request, id 7, seq 3, length 8"
    assert packet.ping_sent_s is None


@given(sequence=st.integers(0, 0xFFFF), payload=st.binary(max_size=99))
def test_an_echo_request_of_ours_is_what_scapy_would_make(sequence: int, payload: bytes) -> None:
    assert echo_request(7, sequence, payload) == bytes(ICMP(id=7, seq=sequence) / payload)


@given(data=st.binary(max_size=200), protocol=st.sampled_from([ETH_P_IP, ETH_P_IPV6]))
def test_no_bytes_at_all_break_it(data: bytes, protocol: int) -> None:
    packet = Packet(data, protocol)
    assert isinstance(packet.summary(), str)
    assert packet.ping_sent_s is None or packet.echo


def test_what_is_malformed_is_read_all_the_same() -> None:
    frames = Frames(1, bytes(6), bytes(6), (bytes(4), bytes(4)), (bytes(16), bytes(16)))
    for _ in range(300):
        frame = frames.next()
        packet = Packet(frame[14:], int.from_bytes(frame[12:14]))
        assert packet.summary()
        assert isinstance(packet.echo, tuple | None)
        assert packet.header_bytes >= 0


@pytest.mark.parametrize(
    ("chain", "following", "end"),
    [
        (b"", 17, 40),
        (b"\x11\x00" + bytes(6), 0, 48),
        (b"\x3c\x01" + bytes(14) + b"\x11\x00" + bytes(6), 43, 64),
        (b"\x11\x00\x00\x01" + bytes(4), 44, 48),  # a first fragment
        (b"\x11\x00\x05\x00" + bytes(4), 44, 40),  # a later one: what follows is no header
        (b"\x11\x04" + bytes(22), 51, 64),
        (b"\x11\x00", 60, 40),  # cut short
    ],
)
def test_where_the_network_header_ends(chain: bytes, following: int, end: int) -> None:
    packet = Packet(b"\x60" + bytes(5) + bytes([following]) + bytes(33) + chain, ETH_P_IPV6)
    assert packet.header_bytes == end
    assert packet.options == chain[: end - 40]


def test_the_transport_header_follows() -> None:
    layers = IPv6(nh=0) / IPv6ExtHdrHopByHop() / UDP(sport=1, dport=2) / b"abc"
    packet = Packet(bytes(layers), ETH_P_IPV6)
    after = edited(packet, lambda _: IPv6() / UDP(sport=1, dport=2) / b"abc", data_offset=48)
    assert (packet.header_bytes, after.packet.header_bytes, after.data_offset) == (48, 40, 40)


@given(data=st.binary(max_size=60))
def test_the_headers_fields_are_those_that_scapy_finds(data: bytes) -> None:
    ipv4, ipv6 = Packet(b"\x45" + data, ETH_P_IP), Packet(b"\x60" + data, ETH_P_IPV6)
    if len(ipv4.data) < 20:
        assert (ipv4.is_readable, ipv4.source, ipv4.destination, ipv4.header_fields) == (False, "", "", {})
    else:
        header = IP(ipv4.data[:20])
        assert ipv4.is_readable
        assert (ipv4.source, ipv4.destination) == (header.src, header.dst)
        assert ipv4.header_fields == {"ttl": header.ttl, "id": header.id, "length": header.len}
    if len(ipv6.data) < 40:
        assert (ipv6.source, ipv6.destination, ipv6.header_fields) == ("", "", {})
    else:
        header = IPv6(ipv6.data[:40])
        assert (ipv6.source, ipv6.destination) == (header.src, header.dst)
        assert ipv6.header_fields == {"hop limit": header.hlim, "length": header.plen}


def test_a_header_of_another_version_is_not_read() -> None:
    assert not Packet(b"\x65" + bytes(39), ETH_P_IP).is_readable
    assert not Packet(b"\x45" + bytes(39), ETH_P_IPV6).is_readable
    assert not Packet(bytes(40), 0x88CC).is_readable
    assert Packet(b"\0\1" + bytes(26), ETH_P_ARP).is_readable
    assert not Packet(b"\0\6" + bytes(26), ETH_P_ARP).is_readable
