"""Frames lost between the guest and the host side of its links."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import astuple, dataclass

from skblab.errors import SkblabError


@dataclass(frozen=True)
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


class LossCount:
    """Count the losses of a lab's links, without those passed to ``leave_out()``.

    :param host_side: returns how many frames the host's side has dropped since boot: for the guest, and from it
    :param guest_side: returns how many the guest's side has lost since boot: cut, without memory, refused by the host
    """

    def __init__(
        self, host_side: Callable[[], tuple[int, int]], guest_side: Callable[[], tuple[int, int, int]]
    ) -> None:
        self._host_side = host_side
        self._guest_side = guest_side
        self._ever = self._left_out = Losses()

    def leave_out(self, losses: Losses) -> None:
        """Exclude these frames from the count: they were lost before, or on purpose."""
        self._left_out += losses

    def count(self) -> None:
        """Ask both sides; while a lab ends, keep their last answers."""
        with suppress(SkblabError, OSError):
            for_guest, from_guest = self._host_side()
            cut, no_memory, refused = self._guest_side()
            self._ever = Losses(cut, no_memory, for_guest, from_guest + refused)

    @property
    def losses(self) -> Losses:
        """The losses at the last count()."""
        return self._ever - self._left_out
