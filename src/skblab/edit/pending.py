"""A checksum that an edit leaves to the kernel."""

from dataclasses import dataclass


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

    def moved(self, by: int) -> "Checksum":
        """Return the same one, which begins so many bytes further on."""
        return Checksum(self.start + by, self.offset)


WHOLE = Checksum()
