"""What rules did to packets while they were followed: each verdict is noted at the step where it was given."""

from bisect import bisect_right
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from skblab.trace.model import Step

NEAR = 256  # steps, of all packets, between a packet's own and the verdict on it


class Verdicts:
    """Note verdicts as they were told, one after another."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], Step] = {}

    def note(self, steps: "Sequence[Step]", told: dict[str, Any]) -> None:
        """Note one verdict (docs/reference/trace-files.md), all steps before it being there."""
        packet = told["skb"], told["function"]
        if "held_ns" in told:
            step = self._held.pop(packet, None)
            if step:
                step.verdict += f": {told['verdict']} after {told['held_ns'] / 1e6:.2f} ms"
            return
        step = _step_of(steps, int(told["skb"], 16), told["function"], told["time_ns"])
        if step is None:
            return  # of a packet that is not followed
        where = "" if step.function.name == told["function"] else f" at {told['function']}()"
        step.verdict = f"{step.verdict}, " * bool(step.verdict) + told["verdict"] + where
        self._held[packet] = step


def _step_of(steps: "Sequence[Step]", skb: int, function: str, at_ns: int) -> "Step | None":
    """Return the packet's last step before a time, in that function if it is followed there."""
    end = bisect_right(steps, at_ns, key=lambda step: step.at_ns)
    ours = [step for step in steps[max(end - NEAR, 0) : end] if step.skb == skb]
    return next((step for step in reversed(ours) if step.function.name == function), ours[-1] if ours else None)
