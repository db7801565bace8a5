"""Lengths and checksums follow a change by what has changed. Those that were wrong before stay as they were."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from skblab.edit.layers import Covered, Part, is_fragment, kind_of
from skblab.edit.sums import ONES, WHOLE, Checksum, add, inverse, updated
from skblab.errors import PacketError

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers


@dataclass(slots=True)
class Built:
    """A packet before and after a change, layer by layer.

    ``after``: the layers as they were written; ``origins``: the place that each had, or None; ``named``: the fields
    that the change has set in each.
    """

    before_data: bytes
    before: list[Part]
    data: bytearray = field(default_factory=bytearray)
    padding: bytes = b""
    after: list[Part] = field(default_factory=list)
    origins: list[Part | None] = field(default_factory=list)
    named: list[frozenset[str]] = field(default_factory=list)

    def prepend(self, layer: "Layers", origin: Part | None, named: frozenset[str], header: bytes) -> None:
        """Add the next layer, from the innermost outwards."""
        for part in self.after:
            part.start += len(header)
        self.after.insert(0, Part(layer, kind_of(layer), 0, len(header)))
        self.origins.insert(0, origin)
        self.named.insert(0, named)

    def place(self) -> None:
        """Find where each layer ends now: further than before by what has grown inside it."""
        whole = len(self.data) - len(self.padding)
        was_whole = max((part.inside for part in self.before), default=0)
        for part, origin in zip(self.after, self.origins, strict=True):
            part.end = max(whole + origin.end - was_whole, part.inside) if origin else whole

    def number_before(self, origin: Part) -> int:
        """Return which layer it was."""
        return next(number for number, part in enumerate(self.before) if part is origin)


def follow(built: Built, *, fix: bool, pending: Checksum) -> tuple[Checksum, bool, list[str]]:
    """Let lengths and checksums follow.

    Return the checksum that is still left to the kernel, whether what the kernel knows of checksums is true no more,
    and remarks.

    :raises PacketError: a length is more than its field can say
    """
    built.place()
    if not fix:
        return *_unfixed(built, pending), []
    for number in range(len(built.after)):
        _let_lengths_follow(built, number)
    moved = _moved(built, pending)
    for number in reversed(range(len(built.after))):
        _let_sum_follow(built, number, pending, moved)
    distrusted = any(
        part.kind.sum_field in named for part, named in zip(built.after, built.named, strict=True) if _is_upper(part)
    )
    return moved, distrusted or (bool(pending) and not moved), _remarks(built)


def _is_upper(part: Part) -> bool:
    return bool(part.kind.sum_at) and not part.kind.header_only


def _let_lengths_follow(built: Built, number: int) -> None:
    part, origin, named = built.after[number], built.origins[number], built.named[number]
    if origin is None:
        return  # scapy has written what the change has not
    header = bytearray(built.data[part.start : part.inside])
    was = built.before_data[origin.start : origin.inside]
    sizes = (
        (part.kind.own, origin.header_bytes, part.header_bytes),
        (part.kind.total, origin.end - origin.start, part.end - part.start),
    )
    for length, before, now in sizes:
        if length is None or before == now or length.field in named or length.field not in part.layer.fields:
            continue
        if len(was) >= length.at + length.size and length.read(was) == before and not length.write(header, now):
            raise PacketError(
                f"{part.name.lower()}.{length.field} cannot say {now} bytes",
                found=f"{(length.mask >> length.shift) * length.unit + length.less} at most, in units of {length.unit}",
            )
    built.data[part.start : part.inside] = header


def _moved(built: Built, pending: Checksum) -> Checksum:
    """Return where the checksum lies that is left to the kernel; WHOLE where its layer is gone, or was given one."""
    for part, origin, named in zip(built.after, built.origins, built.named, strict=True):
        if origin and pending and origin.start == pending.start:
            return WHOLE if part.kind.sum_field in named else Checksum.moved(pending, part.start - origin.start)
    return WHOLE


def _let_sum_follow(built: Built, number: int, pending: Checksum, moved: Checksum) -> None:
    part, origin, named = built.after[number], built.origins[number], built.named[number]
    kind = part.kind
    if not kind.sum_at or kind.sum_field in named or part.header_bytes < kind.sum_at + 2:
        return
    now = Covered(built.after, number, bytes(built.data), moved)
    is_new = origin is None or part.layer.fields.get(kind.sum_field) is None  # or deleted, so that it is made anew
    if origin is None or is_new:
        value = now.pseudo if now.pending else now.fresh
    else:
        was = Covered(built.before, built.number_before(origin), built.before_data, pending)
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
    """Leave lengths and checksums alone. One that is left to the kernel is written, for it would follow else."""
    for number, part in enumerate(built.after):
        origin = built.origins[number]
        if origin is None or not pending or origin.start != pending.start:
            continue
        moved = Checksum.moved(pending, part.start - origin.start)
        was = Covered(built.before, built.number_before(origin), built.before_data, pending)
        now = Covered(built.after, number, bytes(built.data), moved)
        if (was.sum, was.field) == (now.sum, now.field):
            return moved, False
        if part.kind.sum_field not in built.named[number]:
            built.data[now.field_at : now.field_at + 2] = was.fresh.to_bytes(2)
    return WHOLE, True


def _remarks(built: Built) -> list[str]:
    """Return what a payload of another length does to those who count its bytes."""
    remarks = []
    for part, origin in zip(built.after, built.origins, strict=True):
        more = (part.end - part.inside) - (origin.end - origin.inside) if origin else 0
        if not origin or not more:
            continue
        size = f"{abs(more)} bytes {'more' if more > 0 else 'fewer'}"
        if part.name == "TCP":
            remarks.append(f"tcp: {size} than were sent, so the two ends count different sequence numbers from here on")
        elif is_fragment(origin):
            remarks.append(f"{part.name.lower()}: {size} in a fragment, so those behind it lie at wrong offsets")
    return remarks
