"""A trace as Python objects: functions, steps, kin."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from skblab.agent import abi
from skblab.image.unwind import Frame
from skblab.trace.drops import Places


@dataclass(frozen=True, slots=True)
class TracedFunction:
    """A traced function, as the image described it when the trace was made."""

    name: str
    file: str
    line: int
    signature: str
    return_type: str
    address: int


@dataclass(slots=True)
class Step:
    """A packet enters a function. Times are nanoseconds of the host's CLOCK_MONOTONIC.

    ``data``: the packet's first bytes from its network header; ``changed``: they differ from those of its last step.
    ``call``: this call's number; ``outer``: that of the call around it, 0 where none is known. ``took_ns`` and
    ``value`` (the return value) are None where the return was not traced. ``has_reason``: an argument is a drop reason;
    ``stack`` then says who called, the first time only at a call site where the packet may have been consumed.
    ``verdict``: what a rule did to the packet here; ``by_rule``: a rule, or a person, dropped it.
    """

    function: TracedFunction
    at_ns: int
    packet: int
    call: int
    outer: int
    length: int
    skb: int
    caller: int
    mark: int
    hash: int
    device: str
    reason: int
    data_offset: int
    protocol: int
    data: bytes
    changed: bool
    freed: bool
    resumed: bool
    shared: bool
    has_reason: bool
    fields: bytes = b""
    stack: tuple[tuple[int, int], ...] = ()
    took_ns: int | None = None
    value: int | None = None
    verdict: str = ""
    by_rule: bool = False

    @property
    def end_ns(self) -> int:
        """When the call returned; without a return, when it was entered."""
        return self.at_ns + (self.took_ns or 0)


@dataclass(frozen=True, slots=True)
class Kin:
    """A function makes a packet because of another or as its copy, or merges it into another."""

    function: TracedFunction
    at_ns: int
    packet: int
    other: int
    call: int
    role: abi.Role
    skb: int


@dataclass
class Trace:
    """A trace. ``verdicts`` are what rules did to packets (docs/reference/trace-files.md)."""

    about: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    kin: list[Kin] = field(default_factory=list)
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _places(self) -> Places:
        return Places(self.about["image"], self.about["release"])

    def is_consumed(self, step: Step) -> bool:
        """Whether consume_skb() freed the packet here: it was not dropped."""
        return self._places.is_consumed(step.caller, (one.caller for one in self.steps if one.has_reason))

    def backtrace(self, step: Step) -> tuple[Frame, ...]:
        """Return the backtrace of a step that has a stack, from its function outwards."""
        return self._places.backtrace(step.function.name, step.stack)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: its first journeys as trees."""
        from skblab.view import notebook  # noqa: PLC0415 - most programs have no notebook

        return notebook.trace(self)

    @property
    def whole(self) -> bool:
        """Whether its writer has ended it."""
        return bool(self.end)
