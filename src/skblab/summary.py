"""A packet in one line, as ``tcpdump -nn -S`` prints its headers.

Standard library only, because gdb loads it, too. One thing is added to tcpdump's line, the offset of an IPv4 fragment:
``fragment at 1480``. ``tests/unit/test_summary.py`` compares thousands of lines with tcpdump's own.
"""

import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ETH_P_IP, ETH_P_ARP, ETH_P_IPV6 = 0x0800, 0x0806, 0x86DD
ICMP, IGMP, IPIP, TCP, UDP, IPV6, ROUTING, FRAGMENT, ICMPV6, NONE = 1, 2, 4, 6, 17, 41, 43, 44, 58, 59
WITH_PORTS = {TCP, UDP}
EXTENSIONS = {0: "HBH", ROUTING: "rt6", FRAGMENT: "frag", 60: "DSTOPT"}
MORE_FRAGMENTS, OFFSET = 0x2000, 0x1FFF  # IPv4 flags; the fragment offset is in units of 8 bytes
IPV6_BYTES, TCP_BYTES, UDP_BYTES = 40, 20, 8
TCP_FLAGS = "FSRP.UEW"
FIN_SYN_RST, ACK, URG = 0x07, 0x10, 0x20
EOL, NOP, MSS, WSCALE, SACK_OK, SACK, TIMESTAMPS = 0, 1, 2, 3, 4, 5, 8
NAMES_OF_OPTIONS = {EOL: "eol", NOP: "nop", MSS: "mss", WSCALE: "wscale", SACK_OK: "sackOK", SACK: "sack",
                    TIMESTAMPS: "TS", 19: "md5", 28: "uto", 29: "tcp-ao", 30: "mptcp", 34: "tfo"}  # fmt: skip
UNREACHABLE = (
    "net {} unreachable", "host {} unreachable", "{} protocol {} unreachable", "{} {} unreachable",
    "{} unreachable - need to frag", "{} unreachable - source route failed", "net {} unreachable - unknown",
    "host {} unreachable - unknown", "{} unreachable - source host isolated", "net {} unreachable - admin prohibited",
    "host {} unreachable - admin prohibited", "net {} unreachable - tos prohibited",
    "host {} unreachable - tos prohibited", "host {} unreachable - admin prohibited filter",
    "host {} unreachable - host precedence violation", "host {} unreachable - precedence cutoff",
)  # fmt: skip
NET, HOST, PROTOCOL, PORT, NEED_TO_FRAGMENT = range(5)
REDIRECTS = (
    "redirect {} to net {}",
    "redirect {} to host {}",
    "redirect-tos {} to net {}",
    "redirect-tos {} to host {}",
)
EXCEEDED = ("time exceeded in-transit", "ip reassembly time exceeded")
ICMP_NAMES = {4: "source quench", 9: "router advertisement", 10: "router solicitation", 14: "time stamp reply",
              15: "information request", 16: "information reply", 17: "address mask request",
              18: "address mask"}  # fmt: skip
ICMPV6_NAMES = {1: "destination unreachable", 2: "packet too big", 3: "time exceeded in-transit",
                4: "parameter problem", 128: "echo request", 129: "echo reply", 130: "multicast listener query",
                131: "multicast listener report", 132: "multicast listener done", 133: "router solicitation",
                134: "router advertisement", 135: "neighbor solicitation", 136: "neighbor advertisement",
                137: "redirect", 143: "multicast listener report v2"}  # fmt: skip
UNREACHABLE6 = ("unreachable route {}", "unreachable prohibited {}", "beyond scope {}, source address {}",
                "unreachable address {}", "unreachable port, {} {}")  # fmt: skip
PARAMETERS6 = ("erroneous", "next header", "option", "incomplete header chain")
IGMP_RECORDS = 0x22
IGMP_NAMES = {0x11: "query", 0x12: "v1 report", 0x16: "v2 report", 0x17: "leave", IGMP_RECORDS: "v3 report"}


def summary(data: bytes, protocol: int, length: int | None = None) -> str:
    """Return one line about a packet.

    :param data: its first bytes, from the network header on
    :param protocol: ``ETH_P_*``, in host order
    :param length: of the whole packet from the network header on; default: of *data*
    """
    line = _Line(data, len(data) if length is None else length)
    network = {ETH_P_IP: line.ip4, ETH_P_IPV6: line.ip6, ETH_P_ARP: line.arp}.get(protocol)
    if network is None:
        return f"ethertype {protocol:#06x}, length {line.length}"
    try:
        network(0, line.length)
    except (struct.error, IndexError, ValueError):  # cut short
        line.say(f" [|{line.at}]")
    return " ".join("".join(line.said).split())


@dataclass(frozen=True)
class _Carried:
    """What an IP packet carries: from where in the data, and how many bytes; *said*: its addresses are printed."""

    at: int
    protocol: int
    ends: tuple[str, str]
    length: int
    whole: bool
    said: bool = False


class _Line:
    """The line so far; *at* names the header being read."""

    def __init__(self, data: bytes, length: int) -> None:
        self.data = data
        self.length = length
        self.said: list[str] = []
        self.at = ""

    def say(self, text: str) -> None:
        self.said.append(text)

    def u16(self, at: int) -> int:
        return int(struct.unpack_from("!H", self.data, at)[0])

    def u32(self, at: int) -> int:
        return int(struct.unpack_from("!I", self.data, at)[0])

    def address4(self, at: int) -> str:
        return socket.inet_ntop(socket.AF_INET, self.data[at : at + 4])

    def address6(self, at: int) -> str:
        return socket.inet_ntop(socket.AF_INET6, self.data[at : at + 16])

    def ip4(self, at: int, length: int) -> None:
        """Say an IPv4 header and what follows it; *length* is from the header to the packet's end."""
        self.at = "ip"
        version, header = self.data[at] >> 4, (self.data[at] & 0xF) * 4
        total = self.u16(at + 2) or length  # 0: a GSO packet, longer than the field can hold
        fragment, protocol = self.u16(at + 6), self.data[at + 9]
        if version != 4 or header < 20 or total < header:
            fault = f"bad-len {total}" if header >= 20 else f"bad-hlen {header}"
            self.say(fault if version == 4 else f"IP version {version} (invalid)")
            return
        ends = self.address4(at + 12), self.address4(at + 16)
        where = (fragment & OFFSET) * 8
        if where:
            self.say(f"{ends[0]} > {ends[1]}: ip-proto-{protocol}")
        else:
            whole = not fragment & MORE_FRAGMENTS
            self.carried(_Carried(at + header, protocol, ends, total - header, whole=whole), ICMP)
        if fragment & (OFFSET | MORE_FRAGMENTS):
            self.say(f", fragment at {where}" + (f", length {total - header}" if where else ""))

    def ip6(self, at: int, length: int) -> None:
        """Say an IPv6 header, its extension headers, and what follows them."""
        self.at = "ip6"
        version, following = self.data[at] >> 4, self.data[at + 6]
        ends = self.address6(at + 8), self.address6(at + 24)
        if version != 6:
            self.say(f"IP6 version error: {version} != 6")
            return
        left, place, whole = self.u16(at + 4) or length - IPV6_BYTES, at + IPV6_BYTES, True
        behind = following in EXTENSIONS
        if behind:
            self.say(f"{ends[0]} > {ends[1]}: ")
        while following in EXTENSIONS:
            self.at = EXTENSIONS[following]
            size = 8 if following == FRAGMENT else (self.data[place + 1] + 1) * 8
            self.say(self.extension(following, place, left))
            if following == FRAGMENT:
                whole = False
                if self.u16(place + 2) & ~7:
                    return
            following, place, left = self.data[place], place + size, left - size
        self.carried(_Carried(place, following, ends, left, whole=whole, said=behind), ICMPV6)

    def extension(self, kind: int, at: int, left: int) -> str:
        """Return the text for an IPv6 extension header."""
        if kind == FRAGMENT:
            return f"frag ({self.u16(at + 2) & ~7}|{left - 8}) "
        if kind == ROUTING:
            length, way, segments = self.data[at + 1], self.data[at + 2], self.data[at + 3]
            return f"RT6 (len={length}, type={way}, segleft={segments}) "
        return f"{EXTENSIONS[kind]} "

    def carried(self, one: "_Carried", icmp: int) -> None:
        """Say what an IP packet carries; *icmp* is the number of its family's ICMP."""
        at, protocol, ends, length = one.at, one.protocol, one.ends, one.length
        if protocol in WITH_PORTS:
            self.at = "tcp" if protocol == TCP else "udp"
            ports = self.u16(at), self.u16(at + 2)
            way = [f"{end}.{port}" if not one.said else str(port) for end, port in zip(ends, ports, strict=True)]
            self.say(f"{way[0]} > {way[1]}: ")
            if protocol == TCP:
                self.tcp(at, length)
            else:
                self.udp(at, length, whole=one.whole)
            return
        if not one.said:
            self.say(f"{ends[0]} > {ends[1]}: ")
        inner: dict[int, Callable[[int, int], None]] = {
            icmp: self.icmp if icmp == ICMP else self.icmp6, IPIP: self.ip4, IPV6: self.ip6, IGMP: self.igmp,
        }  # fmt: skip
        if protocol in {IPIP, IPV6}:
            self.say("IP " if protocol == IPIP else "IP6 ")
        if protocol in inner:
            inner[protocol](at, length)
        else:
            self.say("no next header" if protocol == NONE else f"ip-proto-{protocol} {length}")

    def tcp(self, at: int, length: int) -> None:
        """Say a TCP header."""
        sequence, acknowledged = self.u32(at + 4), self.u32(at + 8)
        header, flags, window = (self.data[at + 12] >> 4) * 4, self.data[at + 13], self.u16(at + 14)
        urgent = self.u16(at + 18)
        if header < TCP_BYTES:
            self.say(f"tcp {length - header} [bad hdr length {header} - too short, < {TCP_BYTES}]")
            return
        self.say(f"Flags [{''.join(one for bit, one in enumerate(TCP_FLAGS) if flags >> bit & 1) or 'none'}]")
        if header > length:
            self.say(f" [bad hdr length {header} - too long, > {length}]")
            return
        length -= header
        if length or flags & FIN_SYN_RST:
            self.say(f", seq {sequence}" + (f":{(sequence + length) & 0xFFFFFFFF}" if length else ""))
        if flags & ACK:
            self.say(f", ack {acknowledged}")
        self.say(f", win {window}")
        if flags & URG:
            self.say(f", urg {urgent}")
        if header > TCP_BYTES:
            self.say(", options [")
            self.options(at + TCP_BYTES, at + header)
            self.say("]")
        self.say(f", length {length}")

    def options(self, at: int, end: int) -> None:
        """Say the options of a TCP header."""
        begun = at
        while at < end:
            kind = self.data[at]
            self.say("," if at != begun else "")
            size = 1 if kind in {EOL, NOP} else self.data[at + 1]
            if size < 1 + (kind not in {EOL, NOP}) or at + size > end:
                self.say("[bad opt]")
                return
            self.say(NAMES_OF_OPTIONS.get(kind, f"unknown-{kind}") + self.option(kind, at + 2, size - 2))
            if kind == EOL:
                return
            at += size

    def option(self, kind: int, at: int, size: int) -> str:
        """Return a TCP option's value."""
        if size > 0:
            self.data[at + size - 1]  # IndexError if the option is cut short
        if (kind, size) == (MSS, 2):
            return f" {self.u16(at)}"
        if (kind, size) == (WSCALE, 1):
            return f" {self.data[at]}"
        if (kind, size) == (TIMESTAMPS, 8):
            return f" val {self.u32(at)} ecr {self.u32(at + 4)}"
        if kind == SACK and size > 0 and size % 8 == 0:
            blocks = (f"{{{self.u32(one)}:{self.u32(one + 4)}}}" for one in range(at, at + size, 8))
            return f" {size // 8} {''.join(blocks)}"
        return f" 0x{self.data[at : at + size].hex()}" if size > 0 else ""

    def udp(self, at: int, length: int, *, whole: bool) -> None:
        """Say a UDP header."""
        claimed = self.u16(at + 4)
        if claimed < UDP_BYTES:
            self.say(f"truncated-udplength {claimed}")
            return
        claimed, length = claimed - UDP_BYTES, length - UDP_BYTES
        self.say(f"UDP, bad length {claimed} > {length}" if claimed > length and whole else f"UDP, length {claimed}")

    def icmp(self, at: int, length: int) -> None:
        """Say an ICMP message."""
        self.at = "icmp"
        kind, code = self.data[at], self.data[at + 1]
        if kind in {0, 8}:
            what = f"echo {'request' if kind else 'reply'}, id {self.u16(at + 4)}, seq {self.u16(at + 6)}"
        elif kind == 3:
            what = self.unreachable(at, code)
        elif kind == 5:
            form = REDIRECTS[code] if code < len(REDIRECTS) else f"redirect-#{code} {{}} to {{}}"
            what = form.format(self.address4(at + 24), self.address4(at + 4))
        elif kind == 11:
            what = EXCEEDED[code] if code < len(EXCEEDED) else f"time exceeded-#{code}"
        elif kind == 12:
            what = f"parameter problem - code {code}" if code else f"parameter problem - octet {self.data[at + 4]}"
        elif kind == 13:
            what = f"time stamp query id {self.u16(at + 4)} seq {self.u16(at + 6)}"
        else:
            what = ICMP_NAMES.get(kind, f"type-#{kind}")
        self.say(f"ICMP {what}, length {length}")

    def unreachable(self, at: int, code: int) -> str:
        """Return the words for an ICMP destination unreachable, which quotes an IPv4 packet."""
        quoted = at + 8
        protocol, destination = self.data[quoted + 9], self.address4(quoted + 16)
        if code >= len(UNREACHABLE):
            return f"{destination} unreachable - #{code}"
        more = ""
        if code == PROTOCOL:
            more = str(protocol)
        elif code == PORT:
            port = self.u16(quoted + (self.data[quoted] & 0xF) * 4 + 2)
            more = {TCP: "tcp", UDP: "udp"}.get(protocol, f"protocol {protocol}") + f" port {port}"
        mtu = self.u16(at + 6) if code == NEED_TO_FRAGMENT else 0
        return UNREACHABLE[code].format(destination, more) + (f" (mtu {mtu})" if mtu else "")

    def icmp6(self, at: int, length: int) -> None:
        """Say an ICMPv6 message."""
        self.at = "icmp6"
        kind, code = self.data[at], self.data[at + 1]
        self.say(f"ICMP6, {ICMPV6_NAMES.get(kind, f'unknown icmp6 type ({kind})')}")
        self.u16(at + 2)
        more = ""
        if kind in {128, 129}:
            more = f", id {self.u16(at + 4)}, seq {self.u16(at + 6)}"
        elif kind in {135, 136}:
            more = f", {'who has' if kind == 135 else 'tgt is'} {self.address6(at + 8)}"
        elif kind == 137:
            more = f", {self.address6(at + 24)} to {self.address6(at + 8)}"
        elif kind == 143:
            more = f", {self.u16(at + 6)} group record(s)"
        elif kind in {1, 2, 3, 4}:
            more = self.error6(at, kind, code)
        self.say(f"{more}, length {length}")

    def error6(self, at: int, kind: int, code: int) -> str:
        """Return the words for an ICMPv6 error, which quotes an IPv6 packet."""
        source, destination, protocol = self.address6(at + 16), self.address6(at + 32), self.data[at + 14]
        if kind == 2:
            return f", mtu {self.u32(at + 4)}"
        if kind == 3:
            return (f" for {destination}", " (reassembly)")[code] if code < 2 else f", unknown code ({code})"
        if kind == 4:
            return f", {PARAMETERS6[code]} - octet {self.u32(at + 4)}" if code < len(PARAMETERS6) else f", code-#{code}"
        if code >= len(UNREACHABLE6):
            return f", unknown unreach code ({code})"
        port = f"{'tcp' if protocol == TCP else 'udp'} port {self.u16(at + 50)}" if protocol in WITH_PORTS else ""
        return ", " + UNREACHABLE6[code].format(destination, port if code == 4 else source).rstrip()

    def igmp(self, at: int, _: int) -> None:
        """Say an IGMP message."""
        self.at = "igmp"
        kind = self.data[at]
        group = f" {self.address4(at + 4)}" if any(self.data[at + 4 : at + 8]) else ""
        more = f", {self.u16(at + 6)} group record(s)" if kind == IGMP_RECORDS else group
        self.say(f"igmp {IGMP_NAMES.get(kind, f'0x{kind:02x}')}{more}")

    def arp(self, at: int, length: int) -> None:
        """Say ARP or RARP."""
        self.at = "arp"
        hardware, protocol = self.u16(at), self.u16(at + 2)
        hardware_bytes, protocol_bytes, operation = self.data[at + 4], self.data[at + 5], self.u16(at + 6)
        self.say("ARP, ")
        if protocol != ETH_P_IP or protocol_bytes != 4 or not hardware_bytes:
            name = "Ethernet" if hardware == 1 else f"hardware {hardware}"
            self.say(f"{name} (len {hardware_bytes}), {protocol:#06x} (len {protocol_bytes}), length {length}")
            return
        sender = at + 8
        source = sender + hardware_bytes
        target = source + 4
        asked = target + hardware_bytes
        macs = [self.data[one : one + hardware_bytes].hex(":") for one in (sender, target)]
        ends = self.address4(source), self.address4(asked)
        whose = f" ({macs[1]})" if any(self.data[target:asked]) else ""
        self.say({
            1: f"Request who-has {ends[1]}{whose} tell {ends[0]}", 2: f"Reply {ends[0]} is-at {macs[0]}",
            3: f"Reverse Request who-is {macs[1]} tell {macs[0]}", 4: f"Reverse Reply {macs[1]} at {ends[1]}",
            8: f"Inverse Request who-is {macs[1]} tell {macs[0]}", 9: f"Inverse Reply {macs[0]} at {ends[0]}",
        }.get(operation, f"Unknown ({operation})"))  # fmt: skip
        self.say(f", length {length}")
