"""A packet as bytes, as scapy layers, and in words."""

import contextlib
import logging
import socket
import struct
from dataclasses import dataclass
from functools import cache, cached_property
from typing import TYPE_CHECKING

from skblab.checksum import inverse, ones_sum
from skblab.errors import PacketError
from skblab.html import preformatted, shown, table
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, summary

if TYPE_CHECKING:  # scapy takes half a second to import: not when packets are only counted
    from scapy.packet import Packet as Layers

ECHO_TYPES = {8: "echo request", 0: "echo reply", 128: "echo request", 129: "echo reply"}
TIMEVAL = struct.Struct("=qq")
LARGEST_PACKET_BYTES = 0xFFFF
IPV4_BYTES, IPV6_BYTES, ARP_BYTES, ICMP_BYTES = 20, 40, 28, 8  # header sizes without options; ARP over Ethernet
# IPv6 extension headers, as net/ipv6/exthdrs_core.c ipv6_skip_exthdr() skips them.
OPTIONS6, FRAGMENT6, AUTHENTICATION6 = {0, 43, 60}, 44, 51
VERSIONS = {ETH_P_IP: 4, ETH_P_IPV6: 6}
ARP_OF_ETHERNET = b"\0\1"
DUMPED_BYTES = 16  # in a line


@dataclass(frozen=True)
class Packet:
    """A packet's bytes from its network header on, and its protocol (``ETH_P_*``, host order)."""

    data: bytes
    protocol: int

    @cached_property
    def layers(self) -> "Layers":
        """The packet as scapy dissects it; Raw if its header is cut short or scapy cannot read it."""
        return self.dissected()

    @cached_property
    def pristine(self) -> "Layers":
        """The layers as first dissected. Do not change them."""
        return self.dissected()

    def dissected(self) -> "Layers":
        """Dissect again and return layers of the caller's own, which it may change."""
        from scapy.packet import Raw  # noqa: PLC0415

        dissector, header_bytes = _dissectors().get(self.protocol, (Raw, 0))
        if len(self.data) >= header_bytes:
            with contextlib.suppress(Exception):  # scapy may raise anything on a malformed packet; its bytes remain
                return _in_order(dissector(self.data), self.data)
        return Raw(self.data)

    def summary(self) -> str:
        """Return one line as tcpdump writes it: ``10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 1, length 64``."""
        return summary(self.data, self.protocol)

    def html(self, title: str = "") -> str:
        """Return its layers and bytes as HTML."""
        rows, layer = [], self.pristine
        while layer:
            rows.append((layer.name, "  ".join(f"{name}={_value(value)}" for name, value in layer.fields.items())))
            layer = layer.payload
        dumped = (
            f"{at:04x}  {self.data[at : at + DUMPED_BYTES].hex(' ')}" for at in range(0, len(self.data), DUMPED_BYTES)
        )
        return shown(title or self.summary(), table(("layer", "fields"), rows), preformatted(dumped))

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.html()

    @property
    def is_readable(self) -> bool:
        """Whether the bytes begin with the header that the protocol names."""
        if self.protocol == ETH_P_ARP:
            return len(self.data) >= ARP_BYTES and self.data[:2] == ARP_OF_ETHERNET
        version = VERSIONS.get(self.protocol)
        return version is not None and len(self.data) >= IPV4_BYTES and self.data[0] >> 4 == version

    @property
    def source(self) -> str:
        """The IP source address, or nothing."""
        return self._address(12, 8)

    @property
    def destination(self) -> str:
        """The IP destination address, or nothing."""
        return self._address(16, 24)

    def _address(self, at4: int, at6: int) -> str:
        if self.protocol == ETH_P_IP and len(self.data) >= IPV4_BYTES:
            return socket.inet_ntop(socket.AF_INET, self.data[at4 : at4 + 4])
        if self.protocol == ETH_P_IPV6 and len(self.data) >= IPV6_BYTES:
            return socket.inet_ntop(socket.AF_INET6, self.data[at6 : at6 + 16])
        return ""

    @property
    def header_fields(self) -> dict[str, int]:
        """The IP header's fields that change on the way, or that no summary has; empty for other protocols."""
        if self.protocol == ETH_P_IP and len(self.data) >= IPV4_BYTES:
            length, identification, _, ttl = struct.unpack_from("!HHHB", self.data, 2)
            return {"ttl": ttl, "id": identification, "length": length}
        if self.protocol == ETH_P_IPV6 and len(self.data) >= IPV6_BYTES:
            return {"hop limit": self.data[7], "length": int.from_bytes(self.data[4:6])}
        return {}

    @cached_property
    def echo(self) -> tuple[str, int, int] | None:
        """Kind, identifier and sequence number of an ICMP or ICMPv6 echo message, or None (RFC 792; RFC 4443 4.1)."""
        message = self._icmp_message
        if message is None or len(message) < 8 or message[0] not in ECHO_TYPES:
            return None
        identity, sequence = struct.unpack_from("!HH", message, 4)
        return ECHO_TYPES[message[0]], identity, sequence

    @property
    def ping_sent_s(self) -> float | None:
        """When ping sent this echo request (CLOCK_REALTIME, s): ping puts a struct timeval before its pattern."""
        message = self._icmp_message
        if self.echo is None or message is None or len(message) < 8 + TIMEVAL.size:
            return None
        seconds, microseconds = TIMEVAL.unpack_from(message, 8)
        return seconds + microseconds / 1e6 if 0 <= microseconds < 1_000_000 else None

    @property
    def header_bytes(self) -> int:
        """Size of its network header by its own fields, with options and extension headers; 0: unknown protocol."""
        data = self.data
        if self.protocol == ETH_P_IP:
            return (data[0] & 0xF) * 4 if data else 0
        if self.protocol != ETH_P_IPV6:
            return 0
        end, following = IPV6_BYTES, data[6] if len(data) >= IPV6_BYTES else -1
        while following in {*OPTIONS6, FRAGMENT6, AUTHENTICATION6} and end + 8 <= len(data):
            if following == FRAGMENT6:
                size_bytes = 8
            else:
                size_bytes = (data[end + 1] + 2) * 4 if following == AUTHENTICATION6 else (data[end + 1] + 1) * 8
            is_later_fragment = following == FRAGMENT6 and int.from_bytes(data[end + 2 : end + 4]) & ~7
            if is_later_fragment:
                break
            following, end = data[end], end + size_bytes
        return end

    @property
    def options(self) -> bytes:
        """The options of an IPv4 header, or the extension headers of IPv6."""
        return self.data[IPV4_BYTES if self.protocol == ETH_P_IP else IPV6_BYTES : self.header_bytes]

    def check_like(self, before: "Packet") -> None:
        """Check that the kernel's assumptions still hold after it has checked and parsed the packet *before*.

        :raises PacketError: the network header breaks one, or has options that the kernel has not parsed
            (net/ipv4/ip_input.c ip_rcv_core(), net/ipv6/ip6_input.c ip6_rcv_core(), net/ipv4/arp.c arp_rcv())
        """
        fault = {ETH_P_IP: self._fault4, ETH_P_IPV6: self._fault6, ETH_P_ARP: self._fault_arp}.get(self.protocol)
        if fault and (found := fault(before)):
            raise PacketError("the kernel relies here on what it has checked before", found=found)
        if self.options and self.options != before.options:
            what = "IP options" if self.protocol == ETH_P_IP else "extension headers"
            raise PacketError(
                f"the {what} were parsed before, and cannot be changed here",
                found=f"{before.options.hex(' ') or 'none'} -> {self.options.hex(' ')}",
            )

    def _fault4(self, _: "Packet") -> str:
        size, data = len(self.data), self.data.ljust(IPV4_BYTES, b"\0")
        version, header, total = data[0] >> 4, (data[0] & 0xF) * 4, int.from_bytes(data[2:4])
        if version == 4 and IPV4_BYTES <= header <= total <= size:
            return ""
        return f"IP version {version}, a header of {header} bytes, a length of {total}; the packet has {size} bytes"

    def _fault6(self, _: "Packet") -> str:
        size, data = len(self.data), self.data.ljust(IPV6_BYTES, b"\0")
        version, payload = data[0] >> 4, int.from_bytes(data[4:6])
        if version == 6 and self.header_bytes <= size and IPV6_BYTES + payload <= size:
            return ""
        return f"IP version {version}, a payload of {payload} bytes; the packet has {size} bytes"

    def _fault_arp(self, before: "Packet") -> str:
        if len(self.data) >= ARP_BYTES and self.data[4:6] == before.data[4:6]:
            return ""
        return f"{len(self.data)} bytes, addresses of {self.data[4:5].hex()} and {self.data[5:6].hex()} bytes"

    @property
    def _icmp_message(self) -> bytes | None:
        """The ICMP message directly behind the network header, or None."""
        data = self.data
        if self.protocol == ETH_P_IP and len(data) >= 20 and data[9] == 1:
            return data[(data[0] & 0xF) * 4 :]
        if self.protocol == ETH_P_IPV6 and len(data) >= 40 and data[6] == 58:
            return data[40:]
        return None


def echo_request(identity: int, sequence: int, payload: bytes = b"") -> bytes:
    """Return an ICMP echo request with its checksum (RFC 792; RFC 1071)."""
    message = struct.pack("!BBHHH", 8, 0, 0, identity, sequence & 0xFFFF) + payload
    return message[:2] + inverse(ones_sum(message)).to_bytes(2) + message[4:]


def _value(value: object) -> str:
    return value.hex(" ") if isinstance(value, bytes) and not value.isascii() else str(value)


@cache
def _dissectors() -> dict[int, tuple[type["Layers"], int]]:
    """Load scapy; return each network header's class and least size in bytes, by protocol."""
    # scapy warns of malformed packets on stderr, in the middle of a client's output.
    logging.getLogger("scapy.runtime").setLevel(logging.ERROR)
    from scapy.layers import vxlan  # noqa: F401, PLC0415 - scapy then dissects what VXLAN carries, too
    from scapy.layers.inet import IP  # noqa: PLC0415
    from scapy.layers.inet6 import IPv6  # noqa: PLC0415
    from scapy.layers.l2 import ARP  # noqa: PLC0415

    return {ETH_P_IP: (IP, IPV4_BYTES), ETH_P_IPV6: (IPv6, IPV6_BYTES), ETH_P_ARP: (ARP, ARP_BYTES)}


def _in_order(layers: "Layers", data: bytes) -> "Layers":
    """Return layers in the order of their bytes in the packet.

    Scapy makes fields of what follows the quoted packet in an ICMP error: extensions (RFC 4884), or the end of a long
    quote. Here it is padding.
    """
    from scapy.packet import Padding, Raw  # noqa: PLC0415

    layer = layers
    while layer and not (layer.fields.get("ext") or layer.fields.get("extpad")):
        layer = layer.payload
    if not layer:
        return layers
    whole, around = layer.original, layer.underlayer
    error = type(layer)(whole[:ICMP_BYTES])
    quoted = whole[ICMP_BYTES:]
    try:
        error.add_payload(layer.guess_payload_class(quoted)(quoted))
    except Exception:  # noqa: BLE001 - nothing parsable is quoted
        error.add_payload(Raw(quoted))
    behind = data[data.rindex(whole) + len(whole) :]
    around.remove_payload()
    around.add_payload(error)
    if behind:
        around.add_payload(Padding(behind))
    return layers
