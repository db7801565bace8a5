"""A change that corrupts a packet's payload, the same bytes on every run."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from skblab.edit.layers import carrier, is_raw, parts_of
from skblab.errors import PacketError

if TYPE_CHECKING:
    from scapy.packet import Packet as Layers


def corrupting(count: int, seed: str) -> Callable[["Layers"], bytes]:
    """Return the change that gives *count* bytes of the payload, or as many as it has, other values.

    Checksums have to stay as they are, so that the receiver sees it: edit with ``fix=False``.

    :param seed: determines which bytes, and their values
    """

    def change(layers: "Layers") -> bytes:
        chance = random.Random(seed)  # noqa: S311 - to be the same on every run
        before = _payload(layers)
        payload = bytearray(before)
        while _sum(payload) == _sum(before):  # a change of two bytes may make none of a checksum
            payload[:] = before
            for place in chance.sample(range(len(payload)), min(count, len(payload))):
                payload[place] ^= chance.randrange(1, 256)
        return bytes(payload)

    return change


def _sum(payload: bytes | bytearray) -> int:
    """Return the sum of 16-bit words that checksums are made of (RFC 1071, section 1)."""
    return int.from_bytes(payload + bytes(len(payload) % 2)) % 0xFFFF


def _payload(layers: "Layers") -> bytes:
    """Return the bytes in whose place a change puts those that it returns: what ``carrier()`` carries."""
    last = carrier(layers)
    carried = last if is_raw(last) else last.payload
    if "data" in last.fields:  # an ICMPv6 echo has its payload in a field
        payload = last.data
    elif is_raw(carried):
        payload = carried.load
    else:  # layers that scapy may write in another way
        parts = parts_of(layers, layers.original)
        payload = next((layers.original[one.inside : one.end] for one in parts if one.layer is last), b"")
    if not payload:
        raise PacketError("no payload to corrupt in this packet", found=layers.summary())
    return bytes(payload)
