"""Update lengths and checksums by the difference that a change has made. Those that were wrong before stay wrong."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skblab.checksum import ONES, add, inverse, updated
from skblab.edit.layers import Covered, Part, is_fragment, kind_of
from skblab.edit.pending import WHOLE, Checksum
from skblab.errors import PacketError

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers


@dataclass
class Written(Part):
    """A layer as written: its place before the change, or None, and the fields that the change has set."""

    origin: Part | None = None
    named: frozenset[str] = frozenset()


@dataclass
class Built:
    """A packet before and after a change, layer by layer."""

    before_data: bytes
    before: list[Part]
    data: bytearray = field(default_factory=bytearray)
    padding: bytes = b""
    after: list[Written] = field(default_factory=list)

    def prepend(self, layer: "Layers", origin: Part | None, named: frozenset[str], header: bytes) -> None:
        """Add the next layer, from the innermost outwards."""
        for part in self.after:
            part.start += len(header)
        self.after.insert(0, Written(layer, kind_of(layer), 0, len(header), origin=origin, named=named))

    def place(self) -> None:
        """Find where each layer ends now: its end has moved by the growth inside it."""
        whole = len(self.data) - len(self.padding)
        was_whole = max((part.inside for part in self.before), default=0)
        for part in self.after:
            part.end = max(whole + part.origin.end - was_whole, part.inside) if part.origin else whole


def follow(built: Built, *, fix: bool, pending: Checksum) -> tuple[Checksum, bool, list[str]]:
    """Update lengths and checksums.

    Return the checksum that the kernel has still to write, whether the kernel's knowledge of the checksums is stale,
    and remarks.

    :raises PacketError: a length does not fit into its field
    """
    built.place()
    if not fix:
        return *_unfixed(built, pending), []
    for part in built.after:
        _let_lengths_follow(built, part)
    moved = _moved(built, pending)
    for part in reversed(built.after):
        _let_sum_follow(built, part, pending, moved)
    upper = [part for part in built.after if part.kind.sum_at and not part.kind.header_only]
    distrusted = any(part.kind.sum_field in part.named for part in upper)
    return moved, distrusted or (bool(pending) and not moved), _remarks(built)


def _let_lengths_follow(built: Built, part: Written) -> None:
    origin = part.origin
    if origin is None:
        return  # scapy has computed what the change has not set
    header = bytearray(built.data[part.start : part.inside])
    was = built.before_data[origin.start : origin.inside]
    sizes = (
        (part.kind.own, origin.header_bytes, part.header_bytes),
        (part.kind.total, origin.end - origin.start, part.end - part.start),
    )
    for length, before, now in sizes:
        if length is None or before == now or length.field in part.named or length.field not in part.layer.fields:
            continue
        if len(was) >= length.at + length.size and length.read(was) == before and not length.write(header, now):
            raise PacketError(
                f"{part.name.lower()}.{length.field} cannot say {now} bytes",
                found=f"{(length.mask >> length.shift) * length.unit + length.less} at most, in units of {length.unit}",
            )
    built.data[part.start : part.inside] = header


def _moved(built: Built, pending: Checksum) -> Checksum:
    """Return where the pending checksum lies now; WHOLE if its layer is gone or the change has set its checksum."""
    for part in built.after:
        if part.origin and pending and part.origin.start == pending.start:
            return WHOLE if part.kind.sum_field in part.named else pending.moved(part.start - part.origin.start)
    return WHOLE


def _let_sum_follow(built: Built, part: Written, pending: Checksum, moved: Checksum) -> None:
    kind = part.kind
    if not kind.sum_at or kind.sum_field in part.named or part.header_bytes < kind.sum_at + 2:
        return
    now = Covered(built.after, part, bytes(built.data), moved)
    if part.origin is None or part.layer.fields.get(kind.sum_field) is None:  # deleted: computed again
        value = now.pseudo if now.pending else now.fresh
    else:
        was = Covered(built.before, part.origin, built.before_data, pending)
        if now.pending:
            value = add(now.field, inverse(was.pseudo), now.pseudo)
        elif (part.is_a("UDP") and not was.field) or was.right is False:
            return
        else:
            value = updated(was.field, was.sum, now.sum)
            if part.is_a("UDP") and not value:
                value = ONES
    built.data[now.field_at : now.field_at + 2] = value.to_bytes(2)


def _unfixed(built: Built, pending: Checksum) -> tuple[Checksum, bool]:
    """Leave lengths and checksums alone; write a pending checksum as it was right before the change."""
    for part in built.after:
        origin = part.origin
        if origin is None or not pending or origin.start != pending.start:
            continue
        moved = pending.moved(part.start - origin.start)
        was = Covered(built.before, origin, built.before_data, pending)
        now = Covered(built.after, part, bytes(built.data), moved)
        if (was.sum, was.field) == (now.sum, now.field):
            return moved, False
        if part.kind.sum_field not in part.named:
            built.data[now.field_at : now.field_at + 2] = was.fresh.to_bytes(2)
    return WHOLE, True


def _remarks(built: Built) -> list[str]:
    """Return what a payload of another length does to a TCP connection or to other fragments."""
    remarks = []
    for part in built.after:
        origin = part.origin
        more = (part.end - part.inside) - (origin.end - origin.inside) if origin else 0
        if not origin or not more:
            continue
        size = f"{abs(more)} bytes {'more' if more > 0 else 'fewer'}"
        if part.name == "TCP":
            remarks.append(f"tcp: {size} than were sent, so the two ends count different sequence numbers from here on")
        elif is_fragment(origin):
            remarks.append(f"{part.name.lower()}: {size} in a fragment, so those behind it lie at wrong offsets")
    return remarks
