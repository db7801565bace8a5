"""Layers and fields by name, as in a rule, on the screen and in a difference: ``ip.ttl``, ``ip:2.ttl``.

A layer has the name of its scapy class in small letters. ``ip:2`` is the second IP header from outside, as in scapy's
``packet[IP:2]``.
"""

import difflib
import functools
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from skblab.edit.layers import chain
from skblab.errors import RuleError

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers

PAYLOAD_FIELDS = ("load", "data")  # the payload of Raw and of an ICMPv6 echo
LIKE = 0.6


def named_layers(layers: "Layers") -> Iterator[tuple[str, "Layers"]]:
    """Yield the layers of a packet with their names, outermost first."""
    met: dict[str, int] = {}
    for layer in chain(layers):
        name = type(layer).__name__.lower()
        met[name] = met.get(name, 0) + 1
        yield name if met[name] == 1 else f"{name}:{met[name]}", layer


def changing(changes: Sequence[tuple[str, str]]) -> Callable[["Layers"], None]:
    r"""Return the change that ``ip.ttl=3``, ``ip:2.ttl=3``, ``icmp.seq=7`` and so on describe.

    A value is a number (3, 0x10) or what scapy accepts for that field: an address, TCP flags such as ``SA``. A payload
    (``raw.load``) is text with Python's escapes: ``a\x00b``.
    """

    def change(layers: "Layers") -> None:
        there = dict(named_layers(layers))
        for name, text in changes:
            wanted, _, field_name = name.partition(".")
            layer = there.get(wanted.lower().removesuffix(":1"))
            if layer is None or not _has(layer, field_name):
                raise RuleError(f"no field {name} in this packet", found=f"its layers: {', '.join(there)}")
            layer.setfieldval(field_name, _value(layer, name, text))

    return change


def fault(name: str, text: str) -> tuple[int, RuleError] | None:
    """Return why the change ``name=text`` is wrong for every packet, and at which character; None if it is right."""
    wanted, _, field_name = name.partition(".")
    layer_name, _, number = wanted.lower().partition(":")
    known = _known()
    if layer_name not in known:
        return 0, RuleError(f"no such layer: {wanted}", hint=_near(layer_name, list(known)))
    if number and int(number) < 1:
        return len(layer_name) + 1, RuleError(f"no such layer: {wanted}", hint=f"{layer_name}:2 is the second")
    layer = known[layer_name]()
    fields = [*_fields(layer)]
    if field_name not in fields:
        hint = _near(field_name, fields)
        return len(wanted) + 1, RuleError(f"{layer_name} has no field {field_name}", hint=hint)
    try:
        _value(layer, name, text)
    except RuleError as error:
        return len(name) + 1, error
    return None


@functools.cache
def _known() -> dict[str, type["Layers"]]:
    """Return the layer classes that scapy may find in a packet here, by name."""
    from scapy.config import conf  # noqa: PLC0415
    from scapy.layers import inet, inet6, l2, vxlan  # noqa: F401, PLC0415

    return {one.__name__.lower(): one for one in conf.layers}


def _near(name: str, names: list[str]) -> str:
    found = difflib.get_close_matches(name, names, n=4, cutoff=LIKE)
    return f"is it {' or '.join(found)}?" if found else f"one of: {', '.join(sorted(names)[:40])}"


def _fields(layer: "Layers") -> dict[str, Any]:
    """Return the fields that have bytes in a packet, by name. Scapy's others only control how it is written."""
    return {one.name: one for one in layer.fields_desc if "Phantom" not in type(one).__name__}


def _has(layer: "Layers", name: str) -> bool:
    """Whether a layer has a field in this packet."""
    field = _fields(layer).get(name)
    if field is None:
        return False
    is_there = getattr(field, "_evalcond", None)  # scapy's ConditionalField
    return bool(is_there(layer)) if is_there else True


def _value(layer: "Layers", name: str, text: str) -> Any:  # noqa: ANN401 - whatever the field has
    """Return the value that a text denotes in a field.

    :raises RuleError: the field has no such value
    """
    field_name = name.partition(".")[2]
    field = _plain(layer, field_name)
    if field_name in PAYLOAD_FIELDS and isinstance(field.i2m(layer, field.default), bytes | None):
        return from_escapes(name, text)
    value: int | str
    try:
        value = int(text, 0)
    except ValueError:
        value = text
    try:
        if type(field).__name__.endswith(("IPField", "IP6Field")):
            value = str(ipaddress.ip_address(text))  # scapy would resolve anything else by DNS
        written = field.addfield(layer, b"", field.any2i(layer, value))
    except Exception:  # noqa: BLE001 - each kind of field raises its own error
        raise _no_value(name, text, field) from None
    bits = getattr(field, "size", 0) if isinstance(written, tuple) or hasattr(field, "rev") else 0
    if bits and isinstance(value, int) and not 0 <= value < 1 << bits:
        raise _no_value(name, text, field)
    return value


def _plain(layer: "Layers", name: str) -> Any:  # noqa: ANN401 - scapy's Field
    """Return a field without scapy's conditional wrappers."""
    field = _fields(layer)[name]
    for _ in range(3):
        field = getattr(field, "fld", field)
        choose = getattr(field, "_find_fld_pkt", None)
        field = choose(layer) if choose else field
    return field


def _no_value(name: str, text: str, field: Any) -> RuleError:  # noqa: ANN401
    bits = getattr(field, "size", 0) or getattr(field, "sz", 0) * 8
    numbers = f"0 to {(1 << bits) - 1}"
    kind = type(field).__name__
    if kind.endswith(("IPField", "IP6Field")):
        hint = "an address"
    elif kind == "FlagsField":
        hint = f"letters of {''.join(field.names)}, or {numbers}"
    elif kind == "MACField":
        hint = "an address such as 02:00:00:00:00:01"
    elif getattr(field, "i2s", None):
        hint = f"{numbers}, or {_near(text, [str(one) for one in field.i2s.values()])}"
    elif field.islist or field.holds_packets or "Options" in kind or not bits:
        hint = "a rule cannot write this field; Python can, in HeldPacket.edit()"
    else:
        hint = numbers
    return RuleError(f"no value for {name}: {text}", hint=hint)


def to_escapes(data: bytes) -> str:
    """Return bytes as text with Python's escapes, as ``changing`` reads them."""
    return data.decode("latin-1").encode("unicode_escape").decode("ascii")


def from_escapes(name: str, text: str) -> bytes:
    """Return the bytes that text with Python's escapes denotes.

    :raises RuleError: an escape is cut short
    """
    try:
        return text.encode("ascii", "backslashreplace").decode("unicode_escape").encode("latin-1")
    except UnicodeError as error:
        raise RuleError(f"not the bytes of {name}", found=f"{text}: {error}", hint="text, and bytes as \\x00") from None
