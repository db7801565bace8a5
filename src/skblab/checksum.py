"""The Internet checksum, computed and updated (RFC 1071, RFC 1624)."""

ONES = 0xFFFF


def ones_sum(data: bytes) -> int:
    """Return the ones' complement sum of 16-bit words; 0 only if all are 0. An odd last byte is a word's high byte."""
    return add(int.from_bytes(data + bytes(len(data) % 2)))


def add(*sums: int) -> int:
    """Return the ones' complement sum of sums."""
    total = sum(sums)
    return total % ONES or (ONES if total else 0)


def inverse(value: int) -> int:
    """Return the ones' complement of a sum, which is what the checksum field holds."""
    return value ^ ONES


def updated(field: int, before: int, after: int) -> int:
    """Return a checksum field after the sum of what it covers has changed (RFC 1624, equation 3)."""
    return inverse(add(inverse(field), inverse(before), after))
