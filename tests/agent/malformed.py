"""Frames that no honest sender sends: cut short, with wrong lengths, soups of options, headers upon headers."""

import random
import struct
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

ETHERTYPES = (0x0800, 0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8864, 0x88CC, 0x0027, 0x0003)
PROTOCOLS = (1, 1, 1, 6, 6, 6, 17, 17, 17, 2, 4, 41, 47, 50, 51, 58, 89, 132, 136, 255)
EXTENSIONS = (0, 43, 44, 51, 60, 135)
PORTS = (9, 80, 80, 90, 90, 4789, 65535)
KINDS4 = (8, 8, 8, 0, 3, 4, 5, 11, 12, 13, 17, 255)
KINDS6 = (128, 128, 128, 129, 1, 2, 3, 4, 130, 131, 133, 134, 135, 136, 137, 143, 255)
ERRORS = (1, 2, 3, 4, 5, 11, 12)


def checksum(data: bytes) -> int:
    """Return the Internet's checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = int(sum(words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Frames:
    """An endless source of them, the same for the same seed. Most are nearly right, and get far."""

    def __init__(
        self, seed: int, guest: bytes, host: bytes, ends4: tuple[bytes, bytes], ends6: tuple[bytes, bytes]
    ) -> None:
        self._chance = random.Random(seed)
        self._guest, self._host = guest, host
        self._from4, self._to4 = ends4
        self._from6, self._to6 = ends6
        self._oddity = 0.0
        self._kinds: tuple[Callable[[], bytes], ...] = (
            self.garbage, self.ip4, self.ip4, self.ip4, self.ip4, self.ip6, self.ip6, self.ip6, self.arp, self.vlans,
        )  # fmt: skip

    def next(self) -> bytes:
        """Return the next frame."""
        chance = self._chance
        self._oddity = chance.choice((0.02, 0.05, 0.1, 0.3))
        frame = bytearray(chance.choice(self._kinds)())
        if chance.random() < self._oddity:
            frame = frame[: chance.randrange(14, max(len(frame), 15))]
        while chance.random() < self._oddity:
            frame[chance.randrange(12, len(frame))] ^= 1 << chance.randrange(8)
        return bytes(frame[:1514])

    def _or(self, right: T, *odd: T) -> T:
        """Return what is right, mostly, or something odd."""
        return self._chance.choice(odd) if self._chance.random() < self._oddity else right

    def _some(self, most: int) -> bytes:
        return self._chance.randbytes(self._chance.randrange(most + 1))

    def _link(self, ethertype: int, payload: bytes) -> bytes:
        to = self._or(self._guest, b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01")
        return to + self._host + struct.pack("!H", ethertype) + payload

    def garbage(self) -> bytes:
        """Random bytes under any type."""
        kind = self._chance.choice((*ETHERTYPES, self._chance.randrange(65536)))
        return self._link(kind, self._some(self._chance.choice((4, 40, 400, 1500))))

    def arp(self) -> bytes:
        """ARP with other lengths than Ethernet's and IPv4's, other senders and operations."""
        chance = self._chance
        hardware, protocol = self._or((6, 4), (0, 0), (255, 255), (8, 4), (6, 16))
        operation = self._or(chance.choice((1, 2)), 3, 0, 9)
        head = struct.pack("!HHBBH", self._or(1, 6, 0), self._or(0x0800, 0x86DD), hardware, protocol, operation)
        sender = self._or(b"\xc0\xa8\x0a\x21", bytes(4), b"\xff" * 4, self._to4, b"\x0a\x00\x00\x01")
        target = self._or(bytes(6), self._guest) + self._or(self._to4, b"\xe0\x00\x00\x01", bytes(4))
        return self._link(0x0806, head + self._host + sender + target + self._some(30))

    def vlans(self) -> bytes:
        """Tags upon tags, priority tags too."""
        chance = self._chance
        inner = chance.choice((self.ip4, self.ip6, self.arp))()
        tags = b"".join(struct.pack("!HH", chance.randrange(3), 0x8100) for _ in range(self._or(0, 1, 2, 5)))
        return self._link(chance.choice((0x8100, 0x88A8)), tags + struct.pack("!H", chance.randrange(3)) + inner[12:])

    def transport(self, protocol: int) -> bytes:
        """Return a transport's header whose own lengths are wrong, now and then, and its payload."""
        chance = self._chance
        data = self._some(chance.choice((0, 8, 60, 600)))
        ports = (chance.choice(PORTS), chance.choice(PORTS))
        if protocol == 6:
            flags = chance.choice((0x02, 0x02, 0x12, 0x10, 0x04, 0x01, 0x00, 0x1FF, chance.randrange(512)))
            options = chance.choice((
                b"", bytes(20), b"\x02\x04\x05\xb4", b"\x02\x00\x00\x00", b"\x05\xff" + bytes(14), b"\x08\x0a\x00\x00",
                chance.randbytes(chance.choice((4, 20, 40))),
            ))  # fmt: skip
            offset = self._or(5 + len(options) // 4, 5, 6, 10, 15, 0, 4)
            numbers = chance.getrandbits(32), chance.getrandbits(32)
            return struct.pack("!HHIIHHHH", *ports, *numbers, offset << 12 | flags, 1000, 0, 0) + options + data
        if protocol in {17, 136}:
            length = self._or(8 + len(data), 0, 7, 65535, chance.randrange(65536))
            return struct.pack("!HHHH", *ports, length, 0) + data
        if protocol in {1, 58}:
            kind = chance.choice(KINDS4 if protocol == 1 else KINDS6)
            quoted = self._or(data, (self.ip4 if protocol == 1 else self.ip6)()[14:]) if kind in ERRORS else data
            return struct.pack("!BBHI", kind, self._or(0, 1, 4, 255), 0, chance.getrandbits(32)) + quoted
        if protocol in {4, 41}:
            return self._or((self.ip4 if protocol == 4 else self.ip6)()[14:], data)
        return data

    def _sealed(self, protocol: int, payload: bytes, pseudo: bytes) -> bytes:
        """Return a transport with its checksum, mostly."""
        place = {1: 2, 6: 16, 17: 6, 58: 2}.get(protocol)
        if place is None or len(payload) < place + 2 or self._or(False, True):
            return payload
        blank = payload[:place] + bytes(2) + payload[place + 2 :]
        total = checksum(blank if protocol == 1 else pseudo + blank)
        return blank[:place] + struct.pack("!H", total or 0xFFFF) + blank[place + 2 :]

    def ip4(self) -> bytes:
        """IPv4 with options of every length, fragments, and lengths that are not so."""
        chance = self._chance
        options = b"" if chance.random() < 0.6 else chance.choice((
            bytes(4), b"\x01" * 40, b"\x07\x27\x04" + bytes(37), b"\x44\x28\x05\x01" + bytes(36),
            b"\x83\x07\x04\x0a\x00\x00\x01\x00", b"\x89\x27\x08" + bytes(37), b"\x94\x04\x00\x00",
            b"\x86\x28" + self._some(38), b"\x07\x00\x00\x00", b"\x44\xff\x05\x01",
            chance.randbytes(4 * chance.randrange(11)),
        ))  # fmt: skip
        options = options[:40] + bytes(-len(options[:40]) % 4)
        protocol = chance.choice(PROTOCOLS)
        source = self._or(self._from4, self._to4, bytes(4), b"\xff" * 4, b"\x7f\x00\x00\x01", b"\xe0\x00\x00\x01")
        to = self._or(self._to4, b"\xff" * 4, b"\xe0\x00\x00\x01", b"\x7f\x00\x00\x01", b"\x0a\x01\x02\x03")
        payload = self.transport(protocol)
        payload = self._sealed(protocol, payload, source + to + struct.pack("!HH", protocol, len(payload)))
        header = 5 + len(options) // 4
        fragment = self._or(0, 0x2000, 0x2001, 0x1FFF, 0x3FFF, 1, 0x4000, 0x8000, chance.randrange(65536))
        size = header * 4 + len(payload)
        total = self._or(size, 0, 19, 20, size + 1, size - 1, 65535, header * 4)
        first = self._or(0x40 | header, 0x40, 0x44, 0x4F, 0x60 | header, 0x45)
        lifetime = self._or(64, 1, 0)
        head = struct.pack("!BBHHHBBH4s4s", first, self._or(0, chance.randrange(256)), total & 0xFFFF,
                           chance.randrange(4), fragment, lifetime, protocol, 0, source, to) + options  # fmt: skip
        if not self._or(False, True):
            head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return self._link(0x0800, head + payload)

    def extension(self, kind: int, following: int) -> bytes:
        """Return an extension header; what it says of its length is true, mostly."""
        chance = self._chance
        if kind == 44:
            return struct.pack("!BBHI", following, 0, self._or(0, 1, 8, 9, 0xFFF8, 0xFFF9, 0x5A9), chance.randrange(4))
        units = chance.choice((0, 0, 1, 2, 5))
        size = units * 8 + 6
        if kind == 43:
            body = bytes([chance.choice((0, 2, 3, 4, 255)), chance.choice((0, 0, 1, 255))]) + chance.randbytes(size - 2)
        else:
            body = chance.choice((
                b"\x01" + bytes([size - 2]) + bytes(size - 2), bytes(size), chance.randbytes(size),
                (b"\x05\x02\x00\x00" + b"\xc2\x04\x00\x01\x00\x00" * 8)[:size], b"\xc9\x10" + bytes(size - 2),
            ))  # fmt: skip
        return bytes([following, self._or(units, 255, 0, 1)]) + body

    def ip6(self) -> bytes:
        """IPv6 with chains of extension headers."""
        chance = self._chance
        protocol = following = chance.choice((*PROTOCOLS, 58, 58, 59))
        source = self._or(self._from6, bytes(16), bytes(15) + b"\x01", b"\xff\x02" + bytes(14), self._to6)
        to = self._or(self._to6, b"\xff\x02" + bytes(13) + b"\x01", bytes(15) + b"\x01")
        payload = self.transport(protocol)
        payload = self._sealed(protocol, payload, source + to + struct.pack("!II", len(payload), protocol))
        for _ in range(chance.choice((0, 0, 0, 1, 1, 2, 8))):
            kind = chance.choice(EXTENSIONS)
            payload = self.extension(kind, following) + payload
            following = kind
        length = self._or(len(payload), 0, max(len(payload) - 1, 0), len(payload) + 1, 65535)
        first = self._or(0x60000000, 0x40000000, 0x6FFFFFFF, 0x00000000)
        head = struct.pack("!IHBB", first, length & 0xFFFF, following, self._or(255, 64, 1, 0)) + source + to
        return self._link(0x86DD, head + payload)
