"""The difference between two packets, by field."""

from collections.abc import Iterator

from skblab.edit.layers import Part, parts_of
from skblab.edit.named import named_layers, to_escapes
from skblab.packet import Packet

SHOWN_BYTES = 32


def difference(before: Packet, after: Packet) -> str:
    """Return the difference, a line per field: ``ip.ttl: 64 -> 3``, ``ip:2.ttl: 5 -> 9``, ``raw.load[4:6]: ab -> cd``.

    Every byte that differs is in some line; bytes outside of all fields have a line of their own.
    """
    if before.data == after.data:
        return ""
    ours, theirs = _walk(before), _walk(after)
    lines: list[str] = []
    same = 0
    for (name, one), (other_name, other) in zip(ours, theirs, strict=False):
        if name != other_name:
            break
        lines += _of_layer(name, one, other, before.data, after.data)
        same += 1
    gone, new = ours[same:], theirs[same:]
    old_rest = before.data[ours[same - 1][1].inside if same else 0 :]
    new_rest = after.data[theirs[same - 1][1].inside if same else 0 :]
    if old_rest != new_rest:
        for (name, part), arrow in [
            *((one, "{} -> nothing") for one in gone),
            *((one, "nothing -> {}") for one in new),
        ]:
            layer = part.layer
            lines += [f"{name}.{one}: {arrow.format(_shown(layer.fields[one]))}" for one in layer.fields]
        end = max((part.inside for _, part in ours), default=0)
        new_end = max((part.inside for _, part in theirs), default=0)
        lines += _of_bytes("behind the packet", before.data[end:], after.data[new_end:])
    return "\n".join(lines)


def _walk(packet: Packet) -> list[tuple[str, Part]]:
    layers = packet.pristine
    names = {id(layer): name for name, layer in named_layers(layers)}
    return [(names[id(part.layer)], part) for part in parts_of(layers, packet.data)]


def _of_layer(name: str, one: Part, other: Part, before: bytes, after: bytes) -> Iterator[str]:
    old, new = before[one.start : one.inside], after[other.start : other.inside]
    if old == new:
        return
    ours, theirs = one.layer.fields, other.layer.fields
    lines: list[str] = []
    for field in [*ours, *(added for added in theirs if added not in ours)]:
        was, now = ours.get(field), theirs.get(field)
        if was == now:
            continue
        if isinstance(was, bytes) and isinstance(now, bytes):
            lines += _of_bytes(f"{name}.{field}", was, now)
        else:
            lines.append(f"{name}.{field}: {_shown(was)} -> {_shown(now)}")
    yield from lines or _of_bytes(name, old, new)


def _of_bytes(name: str, old: bytes, new: bytes) -> list[str]:
    """Return a line for the bytes between the common prefix and the common suffix."""
    if old == new:
        return []
    shorter = min(len(old), len(new))
    first = next((at for at in range(shorter) if old[at] != new[at]), shorter)
    last = next((at for at in range(shorter - first) if old[-1 - at] != new[-1 - at]), shorter - first)
    was, now = old[first : len(old) - last], new[first : len(new) - last]
    place = f"[{first}:{first + len(was)}]" if first or last else ""
    return [f"{name}{place}: {_shown(was)} -> {_shown(now)}"]


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if not isinstance(value, bytes):
        return str(value)
    if not value:
        return "nothing"
    shown = to_escapes(value[:SHOWN_BYTES])
    return f"{shown}... ({len(value)} bytes)" if len(value) > SHOWN_BYTES else shown
