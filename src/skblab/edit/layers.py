"""Where a packet's layers lie in its bytes, and which lengths and checksums are theirs."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skblab.checksum import ONES, add, inverse, ones_sum
from skblab.edit.pending import WHOLE, Checksum

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers

MOST_LENGTH = 0xFFFF


@dataclass(frozen=True)
class Length:
    """A length field: ``(bytes - less) / unit``, in some bits of one or two bytes."""

    field: str
    at: int
    size: int = 2
    shift: int = 0
    mask: int = MOST_LENGTH
    unit: int = 1
    less: int = 0

    def read(self, header: bytes) -> int:
        """Return its value in bytes."""
        value = int.from_bytes(header[self.at : self.at + self.size])
        return ((value & self.mask) >> self.shift) * self.unit + self.less

    def write(self, header: bytearray, length: int) -> bool:
        """Set it to a number of bytes; return false if that does not fit."""
        value, rest = divmod(length - self.less, self.unit)
        if rest or not 0 <= value <= self.mask >> self.shift:
            return False
        place = slice(self.at, self.at + self.size)
        kept = int.from_bytes(header[place]) & ~self.mask
        header[place] = (kept | value << self.shift).to_bytes(self.size)
        return True


@dataclass(frozen=True)
class Kind:
    """What has to be updated when a layer changes.

    :param own: the length of the header
    :param total: the length of the header and everything inside it
    :param sum_at: offset of the checksum; 0: no checksum
    :param sum_field: name of the checksum field
    :param header_only: the checksum covers only the header
    :param protocol: of the checksum's pseudo header (RFC 9293 3.1, RFC 768, RFC 8200 8.1); 0: it has no pseudo header
    """

    own: Length | None = None
    total: Length | None = None
    sum_at: int = 0
    sum_field: str = "chksum"
    header_only: bool = False
    protocol: int = 0


_EXTENSION = Kind(own=Length("len", 1, size=1, mask=0xFF, unit=8, less=8))
# By the name of a scapy class or a base class of it: TCPerror is a TCP header quoted by ICMP.
KINDS = {
    "IP": Kind(
        own=Length("ihl", 0, size=1, mask=0xF, unit=4), total=Length("len", 2), sum_at=10, header_only=True
    ),  # RFC 791 3.1
    "IPv6": Kind(total=Length("plen", 4, less=40)),  # RFC 8200 3
    "IPv6ExtHdrHopByHop": _EXTENSION,  # RFC 8200 4.3
    "IPv6ExtHdrDestOpt": _EXTENSION,
    "IPv6ExtHdrRouting": _EXTENSION,
    "IPv6ExtHdrSegmentRouting": _EXTENSION,
    "TCP": Kind(own=Length("dataofs", 12, size=1, shift=4, mask=0xF0, unit=4), sum_at=16, protocol=6),  # RFC 9293 3.1
    "UDP": Kind(total=Length("len", 4), sum_at=6, protocol=17),  # RFC 768
    "ICMP": Kind(sum_at=2),  # RFC 792
    "_ICMPv6": Kind(sum_at=2, sum_field="cksum", protocol=58),  # RFC 4443 2.3
    "IGMP": Kind(sum_at=2),  # RFC 2236 2
}
NONE = Kind()


@dataclass
class Part:
    """A layer's place in a packet's bytes: its header, and where everything inside it ends."""

    layer: "Layers"
    kind: Kind
    start: int
    header_bytes: int
    end: int = 0

    @property
    def name(self) -> str:
        """The class's name."""
        return type(self.layer).__name__

    @property
    def inside(self) -> int:
        """Offset of what it carries."""
        return self.start + self.header_bytes

    def is_a(self, *names: str) -> bool:
        """Whether the layer's class, or a base class of it, has one of these names."""
        return any(one.__name__ in names for one in type(self.layer).__mro__)


def chain(layers: "Layers") -> Iterator["Layers"]:
    """Yield the layers of a packet, outermost first."""
    while layers and layers.name != "NoPayload":
        yield layers
        layers = layers.payload


def places(layer: "Layers", data: bytes) -> Iterator[tuple[Any, int, int]]:
    """Yield a layer's fields with their first and end bits, until its bytes can no longer be parsed.

    The walk is that of scapy's dissection (Packet.do_dissect()); a field that this packet does not have is skipped.
    """
    rest: Any = data  # after a field that ends within a byte: the bytes from that byte on, and the bits used of it

    def at() -> int:
        left, bits = rest if isinstance(rest, tuple) else (rest, 0)
        return (len(data) - len(left)) * 8 + int(bits)

    for field in layer.fields_desc:
        first = at()
        try:
            rest, _ = field.getfield(layer, rest)
        except Exception:  # noqa: BLE001 - a packet may be any bytes
            return
        if at() > first:
            yield field, first, at()


def kind_of(layer: "Layers") -> Kind:
    """Return what has to be updated in a layer."""
    return next((KINDS[one.__name__] for one in type(layer).__mro__ if one.__name__ in KINDS), NONE)


def is_extension(layer: "Layers") -> bool:
    """Whether a layer is an extension header of IPv6."""
    return any(one.__name__ == "_IPv6ExtHdr" for one in type(layer).__mro__)


def is_padding(layer: "Layers") -> bool:
    """Whether a layer is bytes behind the end of the packet by its length field."""
    return type(layer).__name__ == "Padding"


def headers_of(layers: "Layers") -> list["Layers"]:
    """Return a packet's layers but for padding, from the outermost."""
    return [layer for layer in chain(layers) if not is_padding(layer)]


def is_raw(layer: "Layers") -> bool:
    """Whether a layer is bytes of which scapy knows nothing."""
    return type(layer).__name__ == "Raw"


def parts_of(layers: "Layers", data: bytes) -> list[Part]:
    """Return the places of the layers that scapy has read from these bytes; padding behind the packet is left out."""
    parts: list[Part] = []
    at = 0
    for layer in chain(layers):
        if not is_padding(layer):
            cached = layer.raw_packet_cache  # its bytes as they came
            header_bytes = len(layer.self_build() if cached is None else cached)
            parts.append(Part(layer, kind_of(layer), at, header_bytes))
            at += header_bytes
    limit = len(data)
    for part in parts:
        limit = part.end = _end(part, data, limit)
    return parts


def _end(part: Part, data: bytes, limit: int) -> int:
    """Return where a layer ends: by its own length field, if that is possible."""
    total = part.kind.total
    if total and part.header_bytes >= total.at + total.size:
        says = part.start + total.read(data[part.start : part.inside])
        if part.inside <= says <= limit and not (says == part.inside and part.is_a("IPv6")):  # 0: too long for it
            return says
    return limit


def carrier(layers: "Layers") -> "Layers":
    """Return the header behind which a packet's payload begins.

    It is the innermost one that is IP's or has a length or a checksum, else the innermost: which layers scapy knows
    behind it depends on what this process has imported of scapy.
    """
    found = headers_of(layers)
    known = [layer for layer in found if kind_of(layer) is not NONE or is_extension(layer)]
    return (known or found)[-1]


def says_its_end(part: Part, data: bytes) -> bool:
    """Whether a layer's own length field can be true for these bytes."""
    total = part.kind.total
    return total is None or part.start + total.read(data[part.start : part.inside].ljust(8, b"\0")) == part.end


class Covered:
    """What one checksum covers, and its right value."""

    def __init__(self, parts: Sequence[Part], part: Part, data: bytes, pending: Checksum = WHOLE) -> None:
        self.part = part
        self._outer = [*itertools.takewhile(lambda one: one is not part, parts)]
        self._data = data
        self._pending = pending
        self.field_at = self.part.start + self.part.kind.sum_at

    @property
    def field(self) -> int:
        """The value in its field."""
        return int.from_bytes(self._data[self.field_at : self.field_at + 2])

    @property
    def pending(self) -> bool:
        """Whether the kernel or the device has still to write it."""
        return bool(self._pending) and self._pending.start + self._pending.offset == self.field_at

    @property
    def pseudo(self) -> int:
        """The sum of the pseudo header."""
        part, carrier = self.part, self._carrier
        if not part.kind.protocol or carrier is None:
            return 0
        total = part.kind.total  # UDP's own length includes what is in other fragments
        length = total.read(self._data[part.start : part.inside]) if total else part.end - part.start
        words = divmod(length, 1 << 16)
        header = self._data[carrier.start : carrier.inside]
        addresses = header[12:20] if carrier.is_a("IP") else header[8:24] + (b"" if self._routed else header[24:40])
        return add(ones_sum(addresses), part.kind.protocol, *words)

    @property
    def sum(self) -> int:
        """The sum of everything that it covers, without its own field."""
        end = self.part.inside if self.part.kind.header_only else self.part.end
        data = bytearray(self._data[self.part.start : end])
        data[self.part.kind.sum_at : self.part.kind.sum_at + 2] = bytes(2)
        inner = self._pending.start - self.part.start if self._pending and not self.part.kind.header_only else 0
        if 0 < inner < len(data):
            # Once the inner checksum is written, the sum of what it covers is the inverse of what its field holds now
            # (Documentation/networking/checksum-offloads.rst, LCO).
            at = inner + self._pending.offset
            later = inverse(int.from_bytes(data[at : at + 2]))
            return add(ones_sum(bytes(data[:inner])), later, self.pseudo)
        return add(ones_sum(bytes(data)), self.pseudo)

    @property
    def right(self) -> bool | None:
        """Whether it is right; None if a part of what it covers is not in these bytes."""
        if not self.part.kind.header_only:
            around = [*self._outer, self.part]
            is_whole = all(says_its_end(part, self._data) and not is_fragment(part) for part in around)
            if not is_whole or (self.part.kind.protocol and self._routed):
                return None
        return add(self.sum, self.field) == ONES

    @property
    def fresh(self) -> int:
        """Its right value."""
        value = inverse(self.sum)
        return value or (ONES if self.part.kind.protocol == KINDS["UDP"].protocol else 0)

    @property
    def _carrier(self) -> Part | None:
        return next((part for part in reversed(self._outer) if part.is_a("IP", "IPv6")), None)

    @property
    def _routed(self) -> bool:
        """Whether the pseudo header's address differs from the header's, by a routing header (RFC 8200 8.1)."""
        return any(
            part.is_a("IPv6ExtHdrRouting", "IPv6ExtHdrSegmentRouting") and getattr(part.layer, "segleft", 0)
            for part in self._outer
        )


def is_fragment(part: Part) -> bool:
    """Whether a header says that it carries a fragment."""
    layer = part.layer
    if part.is_a("IP"):
        return bool(layer.getfieldval("frag")) or "MF" in str(layer.getfieldval("flags"))
    return part.is_a("IPv6ExtHdrFragment") and bool(layer.getfieldval("m") or layer.getfieldval("offset"))
