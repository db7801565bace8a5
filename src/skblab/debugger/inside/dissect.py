"""A packet's bytes in one line, in tcpdump's manner.

``skblab.packet`` says the same in more words, by scapy, which a gdb of the system's has not.
"""

import ipaddress
import struct

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
PROTOCOLS = {ETH_P_IP: "IPv4", ETH_P_ARP: "ARP", ETH_P_IPV6: "IPv6"}
ICMP, TCP, UDP, ICMPV6 = 1, 6, 17, 58
ECHO = {(ICMP, 8): "request", (ICMP, 0): "reply", (ICMPV6, 128): "request", (ICMPV6, 129): "reply"}
ICMP_TYPES = {3: "destination unreachable", 5: "redirect", 11: "time exceeded"}
ICMPV6_TYPES = {
    1: "destination unreachable", 2: "packet too big", 3: "time exceeded", 133: "router solicitation",
    134: "router advertisement", 135: "neighbor solicitation", 136: "neighbor advertisement",
    143: "multicast listener report",
}  # fmt: skip
TCP_FLAGS = "FSRP.UEW"
OFFSET = 0x1FFF  # of a fragment, in units of 8 bytes


def summary(data: bytes, protocol: int, length: int) -> str:
    """Return one line about a packet.

    :param data: its first bytes, from the network header on
    :param protocol: ``ETH_P_*``, in host order
    :param length: of the whole packet from the network header on
    """
    try:
        if protocol == ETH_P_IP:
            return _ip4(data, length)
        if protocol == ETH_P_IPV6:
            return _ip6(data, length)
        if protocol == ETH_P_ARP:
            return _arp(data, length)
    except (struct.error, ValueError):
        return f"{PROTOCOLS[protocol]}, cut short: {len(data)} bytes"
    return f"protocol {protocol:#06x}, length {length}"


def _ip4(data: bytes, length: int) -> str:
    header_bytes = (data[0] & 0xF) * 4 if data else 0
    _, total, _, fragment, _, protocol = struct.unpack_from("!HHHHBB", data)
    ends = [str(ipaddress.IPv4Address(data[at : at + 4])) for at in (12, 16)]
    if fragment & OFFSET:
        return f"{ends[0]} > {ends[1]}: fragment at {(fragment & OFFSET) * 8} of protocol {protocol}, length {length}"
    return _transport(data[header_bytes:], protocol, ends, length, total - header_bytes)


def _ip6(data: bytes, length: int) -> str:
    payload, protocol = struct.unpack_from("!HB", data, 4)
    ends = [str(ipaddress.IPv6Address(data[at : at + 16])) for at in (8, 24)]
    rest = data[40:]
    while protocol in {0, 43, 60} and len(rest) >= 8:  # options and routing, RFC 8200 section 4
        size = (rest[1] + 1) * 8
        protocol, rest, payload = rest[0], rest[size:], payload - size
    return _transport(rest, protocol, ends, length, payload)


def _transport(rest: bytes, protocol: int, ends: list[str], length: int, payload: int) -> str:
    """Return the line for what an IP packet of either version carries; *payload* is the length that its header says."""
    if protocol in {ICMP, ICMPV6}:
        name = "ICMP" if protocol == ICMP else "ICMPv6"
        kind = rest[0] if rest else -1
        if (protocol, kind) in ECHO:
            identity, sequence = struct.unpack_from("!HH", rest, 4)
            what = f"{name} echo {ECHO[protocol, kind]}, id {identity}, seq {sequence}"
        else:
            known = (ICMP_TYPES if protocol == ICMP else ICMPV6_TYPES).get(kind, f"type {kind}")
            what = f"{name} {known}"
        return f"{ends[0]} > {ends[1]}: {what}, length {length}"
    if protocol in {TCP, UDP}:
        source, destination = struct.unpack_from("!HH", rest)
        way = f"{ends[0]}.{source} > {ends[1]}.{destination}"
        if protocol == UDP:
            return f"{way}: UDP, length {payload - 8}"
        sequence, acknowledged, offset, bits, window = struct.unpack_from("!IIBBH", rest, 4)
        flags = "".join(letter for number, letter in enumerate(TCP_FLAGS) if bits >> number & 1) or "none"
        ack = f", ack {acknowledged}" if bits & 0x10 else ""
        return f"{way}: Flags [{flags}], seq {sequence}{ack}, win {window}, length {payload - (offset >> 4) * 4}"
    return f"{ends[0]} > {ends[1]}: protocol {protocol}, length {length}"


def _arp(data: bytes, length: int) -> str:
    _, _, _, _, operation, sender, source, _, target = struct.unpack_from("!HHBBH6s4s6s4s", data)
    asked, asker = ipaddress.IPv4Address(target), ipaddress.IPv4Address(source)
    if operation == 1:
        return f"ARP, Request who-has {asked} tell {asker}, length {length}"
    return f"ARP, Reply {asker} is-at {sender.hex(':')}, length {length}"


def hex_lines(data: bytes) -> list[str]:
    """Return a dump as ``tcpdump -X`` prints it."""
    lines = []
    for at in range(0, len(data), 16):
        row = data[at : at + 16]
        words = " ".join(row[pair : pair + 2].hex() for pair in range(0, len(row), 2))
        text = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in row)
        lines.append(f"0x{at:04x}:  {words:39}  {text}")
    return lines
