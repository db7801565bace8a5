"""From a change of scapy layers to a packet's bytes: only the bits of the named fields change."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from skblab.edit.follow import Built, follow
from skblab.edit.layers import Part, carrier, chain, headers_of, is_padding, is_raw, parts_of, places
from skblab.edit.pending import WHOLE, Checksum
from skblab.errors import PacketError
from skblab.packet import LARGEST_PACKET_BYTES, Packet

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers

SMALL_INT = 256  # CPython keeps one object of each int up to this one


@dataclass(frozen=True)
class Edited:
    """A packet after a change.

    :param data_offset: where ``skb->data`` has to point in it
    :param pending: the checksum that the kernel has still to write
    :param distrusted: the kernel's knowledge of the checksums is stale: a receiver has to check them
    :param remarks: side effects of the change, a sentence each
    """

    packet: Packet
    data_offset: int = 0
    pending: Checksum = WHOLE
    distrusted: bool = False
    remarks: tuple[str, ...] = ()


def edited(
    packet: Packet,
    change: Callable[["Layers"], object],
    *,
    fix: bool = True,
    data_offset: int = 0,
    pending: Checksum = WHOLE,
) -> Edited:
    """Return a packet after a change.

    :param change: changes the layers in place, or returns a packet, or bytes: the new payload
    :param fix: update lengths and checksums that were right; a field that the change has set stays as set
    :param data_offset: where ``skb->data`` points in this packet: 0, or the transport header
    :param pending: the checksum that the kernel has still to write
    :raises PacketError: the result is not a packet
    """
    layers = packet.dissected()
    before = parts_of(packet.pristine, packet.data)
    noted = {id(layer): dict(layer.fields) for layer in chain(layers)}
    origins = {id(layer): part for layer, part in zip(headers_of(layers), before, strict=True)}
    layers = _changed(layers, change)
    try:
        built = _build(packet.data, before, _matched(layers, origins, noted))
    except PacketError:
        raise
    except Exception as error:
        raise PacketError("the changed packet cannot be written", found=f"{type(error).__name__}: {error}") from error
    pending, distrusted, remarks = follow(built, fix=fix, pending=pending)
    after = Packet(bytes(built.data), packet.protocol)
    if data_offset > 0 and data_offset == packet.header_bytes:
        data_offset = after.header_bytes
    if len(after.data) > LARGEST_PACKET_BYTES or len(after.data) < max(data_offset, 1):
        raise PacketError(f"the changed packet has {len(after.data)} bytes")
    return Edited(after, data_offset, pending, distrusted, tuple(remarks))


def _changed(layers: "Layers", change: Callable[["Layers"], object]) -> "Layers":
    """Make a change, in place or not; return the changed layers."""
    from scapy.packet import Packet as AnyPacket  # noqa: PLC0415

    result = change(layers)
    if isinstance(result, bytes):
        _put_payload(layers, result)
    elif isinstance(result, AnyPacket):
        return result
    elif result is not None:
        raise PacketError(f"a change returns nothing, a packet or bytes, and not {type(result).__name__}")
    return layers


def _put_payload(layers: "Layers", payload: bytes) -> None:
    """Replace the payload of a packet."""
    from scapy.packet import Raw  # noqa: PLC0415

    last = carrier(layers)
    if is_raw(last):
        last.load = payload
        return
    if "data" in last.fields:  # an ICMPv6 echo has its payload in a field
        last.data = payload
        return
    padding = next((layer for layer in chain(layers) if is_padding(layer)), None)
    last.remove_payload()
    if payload:
        last.add_payload(Raw(payload))
    if padding:
        layers.add_payload(padding)


@dataclass(frozen=True)
class Change:
    """A layer after the change, its place before, and the names of the fields that were set or deleted."""

    layer: "Layers"
    origin: Part | None
    named: frozenset[str]
    deleted: frozenset[str]


def _matched(layers: "Layers", origins: dict[int, Part], noted: dict[int, dict[str, Any]]) -> list[Change]:
    """Find what has changed in each layer.

    A layer that is a new object may be a copy: it is matched with the next missing layer of its class.
    """
    headers = list(chain(layers))
    found = [origins.get(id(layer)) for layer in headers]
    left = [part for part in origins.values() if part not in found]
    changes = []
    for layer, origin in zip(headers, found, strict=True):
        part = origin
        if part is None and not is_padding(layer):
            part = next((one for one in left if type(one.layer) is type(layer)), None)
            left = [one for one in left if one is not part]
        named = frozenset(_named(layer, part, noted.get(id(layer), {}) if origin else {}))
        deleted = frozenset(part.layer.fields.keys() - layer.fields.keys()) if part else frozenset()
        changes.append(Change(layer, part, named, deleted))
    return changes


def _named(layer: "Layers", origin: Part | None, noted: dict[str, Any]) -> Iterator[str]:
    """Yield the fields that a change has set; also a number set to its old value, if it is another object."""
    for name, value in layer.fields.items():
        if origin is None:
            is_named = value is not None
        elif name in origin.layer.fields and value == origin.layer.fields[name]:
            is_named = isinstance(value, int) and value > SMALL_INT and value is not noted.get(name, value)
        else:
            is_named = True
        if is_named:
            yield name


def _build(data: bytes, before: list[Part], changes: list[Change]) -> Built:
    """Write the layers, innermost first: an outer header may depend on what it carries."""
    built = Built(data, before)
    carried = b""
    for change in reversed(changes):
        layer, origin = change.layer, change.origin
        if is_padding(layer):
            built.padding = bytes(layer.load) + built.padding
            continue
        header = _header(change, carried, data)
        built.prepend(layer, origin, change.named, header)
        carried = header + carried
    built.data = bytearray(carried + built.padding)
    return built


def _header(change: Change, carried: bytes, data: bytes) -> bytes:
    """Return a layer's header. In a header that was there before, only the bits of the named fields change.

    :raises PacketError: a field's length has changed, and scapy does not reproduce the header's other fields
    """
    layer, origin = change.layer, change.origin
    if origin is None:
        return _by_scapy(layer, carried)
    was = data[origin.start : origin.inside]
    if not change.named and not change.deleted:
        return was
    if (patched := _patched(change, origin, was, carried)) is not None:
        return patched
    first = origin.layer.copy()
    first.raw_packet_cache = first.raw_packet_cache_fields = None
    again = _by_scapy(first, data[origin.inside : origin.end])
    if again == was:
        return _by_scapy(layer, carried)
    raise PacketError(
        f"scapy does not reproduce this {origin.name} header, so its length cannot be changed",
        found=f"{was.hex(' ')}\nwould become {again.hex(' ')} before any change",
        hint="return the whole packet as scapy's Raw",
    )


def _by_scapy(layer: "Layers", carried: bytes) -> bytes:
    """Return a header as scapy writes it, with the fields that it computes from what the header carries."""
    written = layer.self_build()
    if layer.raw_packet_cache is None:
        written = layer.post_build(written, carried)
        if not written.endswith(carried):
            raise PacketError(
                f"scapy writes {type(layer).__name__} and its payload in one piece, so it cannot be changed"
            )
        written = written[: len(written) - len(carried)]
    return bytes(written)


def _patched(change: Change, origin: Part, was: bytes, carried: bytes) -> bytes | None:
    """Return the original header with the named fields' bits replaced; None if a field has no place or a new length."""
    bits = int.from_bytes(was)
    header = _by_scapy(change.layer, carried) if change.deleted else b""
    found = set()
    for field, first, end in places(origin.layer, was):
        if field.name in change.named:
            value = _written(field, change.layer, end - first)
        elif field.name in change.deleted and len(header) == len(was):
            value = int.from_bytes(header) >> (len(was) * 8 - end) & (1 << end - first) - 1
        else:
            continue
        if value is None:
            return None
        shift = len(was) * 8 - end
        bits = bits & ~((1 << end - first) - 1 << shift) | value << shift
        found.add(field.name)
    return bits.to_bytes(len(was)) if found == change.named | change.deleted else None


def _written(field: Any, layer: "Layers", bits: int) -> int | None:  # noqa: ANN401 - scapy's Field
    """Return a field's value as scapy writes it; None if it does not take exactly that many bits."""
    written = field.addfield(layer, b"", layer.getfieldval(field.name))
    if isinstance(written, tuple):  # whole bytes, the number of bits used of the next one, and those bits
        data, count, value = written
        size, number = len(data) * 8 + count, int.from_bytes(data) << count | value
    else:
        size, number = len(written) * 8, int.from_bytes(written)
    return number if size == bits else None
