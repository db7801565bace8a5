"""Where in the kernel's source a packet was let go, and from where that was called."""

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.errors import SkblabError
from skblab.image.image import Image
from skblab.image.unwind import Frame, Unwinder

if TYPE_CHECKING:
    from skblab.record.steps import Step, Trace

CONSUME = "consume_skb"  # include/linux/skbuff.h: a kernel without tracepoints has it inlined, as kfree_skb()


class Places:
    """Backtraces of a trace's steps, by its image; of an image that is gone, none."""

    def __init__(self, trace: "Trace") -> None:
        self._trace = trace
        self._callers: dict[int, tuple[Frame, ...]] = {}

    @cached_property
    def _unwinder(self) -> Unwinder | None:
        try:
            image = Image.open(Path(self._trace.about["image"]))
        except SkblabError:
            return None
        return Unwinder(image) if image.release == self._trace.about["release"] else None

    def is_consumed(self, step: "Step") -> bool:
        """Whether a packet that is let go here without a reason was not dropped, but is no longer needed."""
        if step.caller not in self._callers and self._unwinder:  # look all up at once
            self._callers |= self._unwinder.callers(
                {step.caller, *(one.caller for one in self._trace.steps if one.let_go)}
            )
        return any(frame.function == CONSUME for frame in self._callers.get(step.caller, ()))

    def backtrace(self, step: "Step") -> tuple[Frame, ...]:
        """Return the kernel's frames at a step that has a stack, from its function outwards."""
        return self._unwinder.backtrace(step.function.name, step.stack) if self._unwinder and step.stack else ()
