"""A checksum that the kernel or the device has still to write."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Checksum:
    """A checksum that the kernel or the device has still to write (include/linux/skbuff.h CHECKSUM_PARTIAL).

    Until then its field holds the pseudo header's sum. ``start``: where the bytes that it covers begin, from the
    network header; ``offset``: where its field lies, from ``start``. Both 0: no checksum is pending.
    """

    start: int = 0
    offset: int = 0

    def __bool__(self) -> bool:
        return self.offset > 0

    def moved(self, by: int) -> "Checksum":
        """Return the same one with its start moved by a number of bytes."""
        return Checksum(self.start + by, self.offset)


WHOLE = Checksum()
