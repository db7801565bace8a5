"""Drop sites: where in the kernel's source a packet was dropped, with the backtrace."""

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from skblab.errors import SkblabError
from skblab.image.image import Image
from skblab.image.unwind import Frame, Unwinder

CONSUME = "consume_skb"  # include/linux/skbuff.h: a kernel without tracepoints inlines it, as it does kfree_skb()


class Places:
    """Backtraces by the image that a trace was made with; empty where that image is gone."""

    def __init__(self, image: str, release: str) -> None:
        self._image = image
        self._release = release
        self._callers: dict[int, tuple[Frame, ...]] = {}

    @cached_property
    def _unwinder(self) -> Unwinder | None:
        try:
            image = Image.open(Path(self._image))
        except SkblabError:
            return None
        return Unwinder(image) if image.release == self._release else None

    def is_consumed(self, caller: int, callers: Iterable[int]) -> bool:
        """Whether a return address lies in consume_skb(); *callers* are all that will be asked about: one lookup."""
        if caller not in self._callers and self._unwinder:
            self._callers |= self._unwinder.callers({caller, *callers})
        return any(frame.function == CONSUME for frame in self._callers.get(caller, ()))

    def backtrace(self, function: str, stack: tuple[tuple[int, int], ...]) -> tuple[Frame, ...]:
        """Return the kernel's frames from a function outwards, by the words of its stack."""
        return self._unwinder.backtrace(function, stack) if self._unwinder and stack else ()
