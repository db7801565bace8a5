"""Frames lost between the guest and the host side of its links."""

from dataclasses import astuple, dataclass


@dataclass(frozen=True, slots=True)
class Losses:
    """How many frames all links have lost, and where.

    :param cut: for the guest, longer than its receive buffer, which holds the device's MTU and 65 bytes
    :param no_memory: for the guest, which had no memory for them
    :param for_guest: for the guest, dropped by the host's end: its queue was full, or they were too long for it
    :param from_guest: from the guest, refused or dropped by the host's end: longer than its MTU, or it was down
    """

    cut: int = 0
    no_memory: int = 0
    for_guest: int = 0
    from_guest: int = 0

    def __sub__(self, other: "Losses") -> "Losses":
        return Losses(*(a - b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __add__(self, other: "Losses") -> "Losses":
        return Losses(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __bool__(self) -> bool:
        return any(astuple(self))

    def __str__(self) -> str:
        sentences = (
            (self.cut, "for the guest, longer than its MTU allows: ip link set vec0 mtu 9000 there"),
            (self.no_memory, "for the guest, which had no memory for them: give it more with --memory"),
            (self.for_guest, "for the guest, dropped on the host's side: the queue was full, or they were too long"),
            (self.from_guest, "from the guest, dropped on the host's side: longer than its MTU, or it was down"),
        )
        return "lost on the link: " + "; ".join(f"{count} {what}" for count, what in sentences if count)
