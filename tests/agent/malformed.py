"""Frames that no honest sender sends: cut short, with wrong lengths, soups of options, headers upon headers."""

import random
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ETHERTYPES = (0x0800, 0x0800, 0x0800, 0x86DD, 0x86DD, 0x0806, 0x8100, 0x88A8, 0x8847, 0x8864, 0x88CC, 0x0027, 0x0003)
PROTOCOLS = (1, 2, 4, 6, 6, 17, 17, 41, 47, 50, 51, 58, 89, 132, 136, 255)
EXTENSIONS = (0, 43, 44, 51, 60, 135)
PORTS = (7, 9, 53, 80, 90, 4789, 65535)
ARP_BYTES = 28


def checksum(data: bytes) -> int:
    """Return the Internet's checksum (RFC 1071)."""
    words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2))
    total = int(sum(words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


class Frames:
    """An endless source of them, the same for the same seed."""

    def __init__(
        self, seed: int, guest: bytes, host: bytes, ends4: tuple[bytes, bytes], ends6: tuple[bytes, bytes]
    ) -> None:
        self._chance = random.Random(seed)
        self._guest, self._host = guest, host
        self._from4, self._to4 = ends4
        self._from6, self._to6 = ends6
        self._kinds: tuple[Callable[[], bytes], ...] = (
            self.garbage, self.ip4, self.ip4, self.ip4, self.ip4, self.ip6, self.ip6, self.ip6, self.arp, self.vlans,
        )  # fmt: skip

    def next(self) -> bytes:
        """Return the next frame."""
        frame = bytearray(self._chance.choice(self._kinds)())
        if self._chance.random() < 0.15:
            frame = frame[: self._chance.randrange(14, max(len(frame), 15))]
        if self._chance.random() < 0.1:
            for _ in range(self._chance.randrange(1, 4)):
                frame[self._chance.randrange(12, len(frame))] ^= 1 << self._chance.randrange(8)
        return bytes(frame[:1514])

    def _some(self, most: int) -> bytes:
        return self._chance.randbytes(self._chance.randrange(most + 1))

    def _link(self, ethertype: int, payload: bytes) -> bytes:
        to = self._chance.choice(
            (self._guest,) * 8 + (b"\xff" * 6, b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01")
        )
        return to + self._host + struct.pack("!H", ethertype) + payload

    def garbage(self) -> bytes:
        """Random bytes under any type."""
        kind = self._chance.choice((*ETHERTYPES, self._chance.randrange(65536)))
        return self._link(kind, self._some(self._chance.choice((4, 40, 400, 1500))))

    def arp(self) -> bytes:
        """ARP with other lengths than Ethernet's and IPv4's, other senders and operations."""
        chance = self._chance
        hardware, protocol = chance.choice(((6, 4),) * 4 + ((0, 0), (255, 255), (8, 4), (6, 16)))
        head = struct.pack("!HHBBH", chance.choice((1, 1, 1, 6, 0)), chance.choice((0x0800, 0x0800, 0x86DD)), hardware,
                           protocol, chance.choice((1, 1, 2, 2, 3, 0, 9)))  # fmt: skip
        sender = chance.choice((bytes(4), b"\xff" * 4, self._to4, b"\x0a\x00\x00\x01"))
        body = (
            self._host
            + sender
            + chance.choice((bytes(6), self._guest))
            + chance.choice((self._to4, b"\xe0\x00\x00\x01"))
        )
        return self._link(0x0806, head + body + self._some(30))

    def vlans(self) -> bytes:
        """Tags upon tags, priority tags too."""
        chance = self._chance
        tags = b"".join(
            struct.pack("!HH", chance.randrange(65536), chance.choice((0x8100, 0x88A8)))
            for _ in range(chance.randrange(5))
        )
        inner = chance.choice((self.ip4, self.ip6, self.arp))()
        return self._link(chance.choice((0x8100, 0x88A8)), tags + struct.pack("!H", chance.randrange(3)) + inner[12:])

    def transport(self, protocol: int) -> bytes:
        """A transport's header whose own lengths are wrong, now and then, and its payload."""
        chance = self._chance
        data = self._some(chance.choice((0, 8, 60, 600)))
        if protocol == 6:
            flags = chance.choice((0x02, 0x12, 0x10, 0x04, 0x01, 0x00, 0xFF, chance.randrange(512)))
            offset = chance.choice((5, 5, 6, 10, 15, 0, 4))
            options = chance.choice(
                (
                    b"",
                    bytes(20),
                    b"\x02\x04\x05\xb4",
                    b"\x02\x00",
                    b"\x05\xff" + self._some(20),
                    b"\x08\x0a",
                    self._some(40),
                )
            )
            return struct.pack("!HHIIHHHH", chance.choice(PORTS), chance.choice(PORTS), chance.getrandbits(32),
                               chance.getrandbits(32), offset << 12 | flags, 1000, 0, 0) + options + data  # fmt: skip
        if protocol in {17, 136}:
            length = chance.choice((8 + len(data), 8 + len(data), 0, 7, 65535, chance.randrange(65536)))
            return struct.pack("!HHHH", chance.choice(PORTS), chance.choice(PORTS), length, 0) + data
        if protocol in {1, 58}:
            kind = chance.choice(
                (8, 0, 3, 4, 5, 11, 12, 13, 17, 128, 129, 1, 2, 130, 131, 133, 134, 135, 136, 137, 143, 255)
            )
            quoted = chance.choice((self.ip4, self.ip6))()[14:] if chance.random() < 0.2 else data
            message = struct.pack("!BBHI", kind, chance.choice((0, 1, 4, 255)), 0, chance.getrandbits(32)) + quoted
            return message[:2] + struct.pack("!H", checksum(message)) + message[4:] if protocol == 1 else message
        if protocol in {4, 41} and chance.random() < 0.7:
            return (self.ip4 if protocol == 4 else self.ip6)()[14:]
        return data

    def ip4(self) -> bytes:
        """IPv4 with options of every length, fragments, and lengths that are not so."""
        chance = self._chance
        options = chance.choice((b"",) * 6 + (
            bytes(4), b"\x01" * 40, b"\x07\x27\x04" + bytes(37), b"\x44\x28\x05\x01" + bytes(36),
            b"\x83\x07\x04\x0a\x00\x00\x01\x00", b"\x89\x27\x08" + bytes(37), b"\x94\x04\x00\x00",
            b"\x86\x28" + self._some(38), b"\x07\x00\x00\x00", b"\x44\xff\x05\x01",
            chance.randbytes(4 * chance.randrange(11)),
        ))  # fmt: skip
        options = options[:40] + bytes(-len(options[:40]) % 4)
        protocol = chance.choice(PROTOCOLS)
        payload = self.transport(protocol)
        header = 5 + len(options) // 4
        fragment = chance.choice(
            (0,) * 5 + (0x2000, 0x2001, 0x1FFF, 0x3FFF, 1, 0x4000, 0x8000, chance.randrange(65536))
        )
        total = header * 4 + len(payload)
        total = chance.choice((total,) * 8 + (0, 19, 20, total + 1, max(total - 1, 0), 65535, header * 4))
        first = chance.choice((0x40 | header,) * 12 + (0x40, 0x44, 0x4F, 0x60 | header, 0x45))
        ends = chance.choice(
            (self._from4,) * 8 + (self._to4, bytes(4), b"\xff" * 4, b"\x7f\x00\x00\x01", b"\xe0\x00\x00\x01")
        )
        to = chance.choice(
            (self._to4,) * 10 + (b"\xff" * 4, b"\xe0\x00\x00\x01", b"\x7f\x00\x00\x01", b"\x0a\x01\x02\x03")
        )
        head = struct.pack("!BBHHHBBH4s4s", first, chance.randrange(256), total & 0xFFFF, chance.randrange(4), fragment,
                           chance.choice((64, 64, 1, 0)), protocol, 0, ends, to) + options  # fmt: skip
        if chance.random() < 0.95:
            head = head[:10] + struct.pack("!H", checksum(head)) + head[12:]
        return self._link(0x0800, head + payload)

    def extension(self, kind: int, following: int) -> bytes:
        """An extension header, with what it says of its length most often true."""
        chance = self._chance
        if kind == 44:
            return struct.pack(
                "!BBHI", following, 0, chance.choice((0, 1, 8, 9, 0xFFF8, 0xFFF9, 0x5A9)), chance.randrange(4)
            )
        units = chance.choice((0, 0, 1, 2, 5, 255))
        size = min(units, 5) * 8 + 6
        if kind == 43:
            body = struct.pack("!BB", chance.choice((0, 2, 3, 4, 255)), chance.randrange(256)) + chance.randbytes(
                size - 2
            )
        else:
            body = chance.choice((b"\x01" + bytes([size - 2]) + bytes(size - 2), bytes(size), chance.randbytes(size),
                                  (b"\x05\x02\x00\x00" + b"\xc2\x04\x00\x01\x00\x00" * 8)[:size].ljust(size, b"\0"),
                                  b"\xc9\x10" + bytes(size - 2)))  # fmt: skip
        return bytes([following, units]) + body

    def ip6(self) -> bytes:
        """IPv6 with chains of extension headers."""
        chance = self._chance
        protocol = chance.choice((*PROTOCOLS, 58, 58, 59))
        payload, following = self.transport(protocol), protocol
        for _ in range(chance.choice((0, 0, 1, 2, 3, 8))):
            kind = chance.choice(EXTENSIONS)
            payload = self.extension(kind, following) + payload
            following = kind
        length = chance.choice((len(payload),) * 8 + (0, max(len(payload) - 1, 0), len(payload) + 1, 65535))
        first = chance.choice((0x60000000,) * 10 + (0x40000000, 0x6FFFFFFF, 0x00000000))
        source = chance.choice(
            (self._from6,) * 8 + (bytes(16), bytes(15) + b"\x01", b"\xff\x02" + bytes(14), self._to6)
        )
        to = chance.choice((self._to6,) * 10 + (b"\xff\x02" + bytes(13) + b"\x01", bytes(15) + b"\x01"))
        hops = chance.choice((64, 255, 255, 1, 0))
        head = struct.pack("!IHBB", first, length & 0xFFFF, following, hops) + source + to
        if protocol == 58 and chance.random() < 0.8 and following == 58 and len(payload) >= 4:
            pseudo = source + to + struct.pack("!II", len(payload), 58)
            payload = (
                payload[:2] + struct.pack("!H", checksum(pseudo + payload[:2] + b"\0\0" + payload[4:])) + payload[4:]
            )
        return self._link(0x86DD, head + payload)
