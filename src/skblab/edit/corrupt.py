"""A change that corrupts a packet's payload, the same bytes on every run."""

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

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
    if "Raw" in layers:
        return bytes(layers["Raw"].load)
    last = layers.lastlayer()
    if data := getattr(last, "data", b""):  # an ICMPv6 echo has its payload in a field
        return bytes(data)
    raise PacketError("no payload to corrupt in this packet", found=layers.summary())
