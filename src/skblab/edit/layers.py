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


@dataclass(frozen=True, slots=True)
class Length:
    """A field that says how long something is: ``(bytes - less) / unit``, in some of a byte's or two bytes' bits."""

    field: str
    at: int
    size: int = 2
    shift: int = 0
    mask: int = MOST_LENGTH
    unit: int = 1
    less: int = 0

    def read(self, header: bytes) -> int:
        """Return what it says, in bytes."""
        value = int.from_bytes(header[self.at : self.at + self.size])
        return ((value & self.mask) >> self.shift) * self.unit + self.less

    def write(self, header: bytearray, length: int) -> bool:
        """Let it say so many bytes; false where it cannot."""
        value, rest = divmod(length - self.less, self.unit)
        if rest or not 0 <= value <= self.mask >> self.shift:
            return False
        place = slice(self.at, self.at + self.size)
        kept = int.from_bytes(header[place]) & ~self.mask
        header[place] = (kept | value << self.shift).to_bytes(self.size)
        return True


@dataclass(frozen=True, slots=True)
class Kind:
    """What has to follow where a layer changes.

    :param own: says how long the header is
    :param total: says how long the header and all that is inside it is
    :param sum_at: where the checksum lies; 0: there is none
    :param sum_field: its name
    :param header_only: it covers the header alone
    :param protocol: it covers a pseudo header with this protocol number (RFC 9293 3.1, RFC 768, RFC 8200 8.1); 0: none
    """

    own: Length | None = None
    total: Length | None = None
    sum_at: int = 0
    sum_field: str = "chksum"
    header_only: bool = False
    protocol: int = 0


_EXTENSION = Kind(own=Length("len", 1, size=1, mask=0xFF, unit=8, less=8))
# By the name of a scapy class or of one that it comes from: TCPerror is a TCP header that ICMP quotes.
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


@dataclass(slots=True)
class Part:
    """A layer's place in a packet's bytes: its header, and where all that is inside it ends."""

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
        """Where what it carries begins."""
        return self.start + self.header_bytes

    def is_a(self, *names: str) -> bool:
        """Whether the layer is of such a class, or of one that comes from it."""
        return any(one.__name__ in names for one in type(self.layer).__mro__)


def chain(layers: "Layers") -> Iterator["Layers"]:
    """Yield the layers of a packet, outermost first."""
    while layers and layers.name != "NoPayload":
        yield layers
        layers = layers.payload


def places(layer: "Layers", data: bytes) -> Iterator[tuple[Any, int, int]]:
    """Yield a layer's fields with the bits at which they begin and end, as far as its bytes can be read.

    As scapy's own dissection walks them (Packet.do_dissect()); what is no part of this packet has no place.
    """
    rest: Any = data  # behind a field that ends within a byte: the bytes from there on, and how many bits

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
    """Return what has to follow in a layer."""
    return next((KINDS[one.__name__] for one in type(layer).__mro__ if one.__name__ in KINDS), NONE)


def is_padding(layer: "Layers") -> bool:
    """Whether a layer is what stands behind the packet that a length has told of."""
    return type(layer).__name__ == "Padding"


def parts_of(layers: "Layers", data: bytes) -> list[Part]:
    """Return the places of the layers that scapy has read from these bytes; bytes behind the packet have none."""
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
    """Return where a layer ends: where it says itself, if that can be."""
    total = part.kind.total
    if total and part.header_bytes >= total.at + total.size:
        says = part.start + total.read(data[part.start : part.inside])
        if part.inside <= says <= limit and not (says == part.inside and part.is_a("IPv6")):  # 0: more than it can say
            return says
    return limit


def says_its_end(part: Part, data: bytes) -> bool:
    """Whether a layer's own length is one that can be true of these bytes."""
    total = part.kind.total
    return total is None or part.start + total.read(data[part.start : part.inside].ljust(8, b"\0")) == part.end


class Covered:
    """What one checksum covers, and what it should be."""

    def __init__(self, parts: Sequence[Part], part: Part, data: bytes, pending: Checksum = WHOLE) -> None:
        self.part = part
        self._outer = [*itertools.takewhile(lambda one: one is not part, parts)]
        self._data = data
        self._pending = pending
        self.field_at = self.part.start + self.part.kind.sum_at

    @property
    def field(self) -> int:
        """What stands in its field."""
        return int.from_bytes(self._data[self.field_at : self.field_at + 2])

    @property
    def pending(self) -> bool:
        """Whether the kernel has still to write it."""
        return bool(self._pending) and self._pending.start + self._pending.offset == self.field_at

    @property
    def pseudo(self) -> int:
        """The sum of the pseudo header."""
        part, carrier = self.part, self._carrier
        if not part.kind.protocol or carrier is None:
            return 0
        total = part.kind.total  # UDP says itself how long it is, also of what is in other fragments
        length = total.read(self._data[part.start : part.inside]) if total else part.end - part.start
        words = divmod(length, 1 << 16)
        header = self._data[carrier.start : carrier.inside]
        addresses = header[12:20] if carrier.is_a("IP") else header[8:24] + (b"" if self._routed else header[24:40])
        return add(ones_sum(addresses), part.kind.protocol, *words)

    @property
    def sum(self) -> int:
        """The sum of all that it covers, without its own field."""
        end = self.part.inside if self.part.kind.header_only else self.part.end
        data = bytearray(self._data[self.part.start : end])
        data[self.part.kind.sum_at : self.part.kind.sum_at + 2] = bytes(2)
        inner = self._pending.start - self.part.start if self._pending and not self.part.kind.header_only else 0
        if 0 < inner < len(data):
            # What the inner checksum will be when it is written makes the sum of what it covers the inverse of what
            # its field holds now (Documentation/networking/checksum-offloads.rst, LCO).
            at = inner + self._pending.offset
            later = inverse(int.from_bytes(data[at : at + 2]))
            return add(ones_sum(bytes(data[:inner])), later, self.pseudo)
        return add(ones_sum(bytes(data)), self.pseudo)

    @property
    def right(self) -> bool | None:
        """Whether it is right; None where these bytes cannot say: a part of what it covers is not here."""
        if not self.part.kind.header_only:
            around = [*self._outer, self.part]
            is_whole = all(says_its_end(part, self._data) and not is_fragment(part) for part in around)
            if not is_whole or (self.part.kind.protocol and self._routed):
                return None
        return add(self.sum, self.field) == ONES

    @property
    def fresh(self) -> int:
        """What it should be."""
        value = inverse(self.sum)
        return value or (ONES if self.part.kind.protocol == KINDS["UDP"].protocol else 0)

    @property
    def _carrier(self) -> Part | None:
        return next((part for part in reversed(self._outer) if part.is_a("IP", "IPv6")), None)

    @property
    def _routed(self) -> bool:
        """Whether the address in the pseudo header is another one than in the header (RFC 8200 8.1)."""
        return any(
            part.is_a("IPv6ExtHdrRouting", "IPv6ExtHdrSegmentRouting") and getattr(part.layer, "segleft", 0)
            for part in self._outer
        )


def is_fragment(part: Part) -> bool:
    """Whether a header says that what it carries is a part of something."""
    layer = part.layer
    if part.is_a("IP"):
        return bool(layer.getfieldval("frag")) or "MF" in str(layer.getfieldval("flags"))
    return part.is_a("IPv6ExtHdrFragment") and bool(layer.getfieldval("m") or layer.getfieldval("offset"))
