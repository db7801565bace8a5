"""The Internet checksum, updated by what has changed (RFC 1071, RFC 1624)."""

from dataclasses import dataclass
from typing import Self

ONES = 0xFFFF


@dataclass(frozen=True, slots=True)
class Checksum:
    """A checksum that the kernel or the device has still to write (include/linux/skbuff.h CHECKSUM_PARTIAL).

    Until then its field holds the pseudo header's sum. ``start``: of the bytes that it covers, from the network header
    on; ``offset``: of its field, from there on. Both 0: nothing is left to be written.
    """

    start: int = 0
    offset: int = 0

    def __bool__(self) -> bool:
        return self.offset > 0

    @classmethod
    def moved(cls, before: Self, by: int) -> Self:
        """Return one that begins elsewhere."""
        return cls(before.start + by, before.offset)


WHOLE = Checksum()


def ones_sum(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words; 0 only of zeros. An odd byte is a word's first."""
    number = int.from_bytes(data + bytes(len(data) % 2))
    return number % ONES or (ONES if number else 0)


def add(*sums: int) -> int:
    """Return the ones' complement sum of sums."""
    total = sum(sums)
    return total % ONES or (ONES if total else 0)


def inverse(value: int) -> int:
    """Return the ones' complement: what a checksum's field holds of a sum."""
    return value ^ ONES


def updated(field: int, before: int, after: int) -> int:
    """Return a checksum's field where the sum of what it covers has changed (RFC 1624, equation 3)."""
    return inverse(add(inverse(field), inverse(before), after))
