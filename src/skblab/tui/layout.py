"""The fields of a packet: where each lies in the bytes, and its text to read and to type."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from skblab.edit.layers import places
from skblab.edit.named import named_layers, to_escapes
from skblab.packet import Packet

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers


@dataclass(frozen=True)
class Field:
    """One field: ``first`` and ``end`` are offsets of its bytes; ``text`` is None if it cannot be typed."""

    name: str  # as in an edit rule: ip.ttl
    shown: str
    text: str | None
    first: int
    end: int

    @property
    def short(self) -> str:
        """The name within its layer."""
        return self.name.partition(".")[2]


@dataclass(frozen=True)
class Layer:
    """One layer and its fields."""

    name: str
    fields: tuple[Field, ...]
    first: int
    end: int


def layout(packet: Packet) -> list[Layer]:
    """Return the layers of a packet, outermost first."""
    layers: list[Layer] = []
    first = 0
    for prefix, layer in named_layers(packet.layers):
        fields = tuple(_fields(prefix, layer, packet.data, first))
        end = max((field.end for field in fields), default=first)
        layers.append(Layer(str(layer.name), fields, first, end))
        first = end
    return layers


def _fields(prefix: str, layer: "Layers", data: bytes, start: int) -> Iterator[Field]:
    for field, first, end in places(layer, data[start:]):
        value = layer.getfieldval(field.name)
        try:
            shown = str(field.i2repr(layer, value))
        except Exception:  # noqa: BLE001 - a packet may be any bytes
            return
        name = f"{prefix}.{field.name}"
        yield Field(name, _readable(value, shown), _typed(value), start + first // 8, start + -(-end // 8))


def _readable(value: object, shown: str) -> str:
    if isinstance(value, bytes):
        return to_escapes(value)
    named = isinstance(value, int) and shown[:1].isalpha() and not _flags(value)  # an enumeration's name
    return f"{shown} ({value})" if named else shown


def _typed(value: object) -> str | None:
    """Return a value as a user would type it, or None if it cannot be typed."""
    if isinstance(value, bytes):
        return to_escapes(value)
    if _flags(value) or isinstance(value, str):
        return str(value)
    return str(value) if isinstance(value, int) else None


def _flags(value: object) -> bool:
    return type(value).__name__ == "FlagValue"  # scapy's: an int that prints as its flags' names
