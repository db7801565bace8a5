"""What is in a trace file, as Python knows it: steps, returns, kinships, and what they are about."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from skblab.agent import abi
from skblab.image.unwind import Frame
from skblab.trace.drops import Places


@dataclass(frozen=True, slots=True)
class Passed:
    """A function that packets pass: the trace's own copy of what the image knows of it."""

    name: str
    file: str
    line: int
    signature: str
    return_type: str
    address: int


@dataclass(slots=True)
class Step:
    """One packet at one function. Times are nanoseconds of the host's CLOCK_MONOTONIC.

    ``data``: the packet's first bytes from its network header, as they are here; ``changed``: other than at its last
    step. ``outer``: the call in which this one happens, 0: none that is known. Where the return was not told,
    ``took_ns`` and ``value`` are None. ``let_go``: by a function that tells a reason; ``stack`` then says who called,
    for reasons that are none only at the first packet that is let go there. ``verdict``: what a rule did to the packet
    here; ``by_rule``: it dropped the packet.
    """

    function: Passed
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
    let_go: bool
    fields: bytes = b""
    stack: tuple[tuple[int, int], ...] = ()
    took_ns: int | None = None
    value: int | None = None
    verdict: str = ""
    by_rule: bool = False

    @property
    def end_ns(self) -> int:
        """When the call was over, as far as that is known."""
        return self.at_ns + (self.took_ns or 0)


@dataclass(frozen=True, slots=True)
class Kin:
    """A packet comes from another, or becomes a part of it, by a function."""

    function: Passed
    at_ns: int
    packet: int
    other: int
    call: int
    role: abi.Role
    skb: int


@dataclass
class Trace:
    """A whole trace. ``whole``: its writer has ended it."""

    about: dict[str, Any]
    steps: list[Step] = field(default_factory=list)
    kin: list[Kin] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def _places(self) -> Places:
        return Places(self.about["image"], self.about["release"])

    def is_consumed(self, step: Step) -> bool:
        """Whether a packet freed here without a reason was not dropped, but is no longer needed."""
        return self._places.is_consumed(step.caller, (one.caller for one in self.steps if one.let_go))

    def backtrace(self, step: Step) -> tuple[Frame, ...]:
        """Return the kernel's frames at a step that has a stack, from its function outwards."""
        return self._places.backtrace(step.function.name, step.stack)

    @property
    def whole(self) -> bool:
        """Whether the writer came to its end."""
        return bool(self.end)
