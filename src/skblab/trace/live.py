"""Journeys of a trace that is being written, each as soon as its packets have ended."""

import time
from pathlib import Path

from skblab.trace.file import Tail
from skblab.trace.journey import Journey, journeys
from skblab.trace.model import Trace
from skblab.trace.reader import Loader

SETTLED_NS = 200_000_000  # calls return after the packet's end, and a verdict's chunk stands behind its steps
STEPS_MOST = 20_000  # of open journeys: each look reads all of them


class Live:
    """The journeys of a trace file, in the order in which they end; the caller forgets those that it has shown.

    ``pending``: some are over but not settled. ``behind``: too many are open, so no more will be returned.
    """

    def __init__(self, path: Path) -> None:
        """Begin to read."""
        self._tail = Tail(path)
        self._loader = Loader()
        self.pending = False
        self.behind = False

    @property
    def trace(self) -> Trace | None:
        """The part of the trace that is not forgotten; None before its first chunk."""
        return self._loader.trace

    def over(self) -> list[Journey]:
        """Read the new chunks; return the journeys that are over."""
        while not self._is_full() and (chunk := self._tail.next()):
            self._loader.take(*chunk)
        self.pending = False
        if self.trace is None:
            return []
        found = [one for one in journeys(self.trace) if _is_over(one)]
        settled = [one for one in found if one.end_ns + SETTLED_NS <= time.monotonic_ns()]
        self.pending = len(settled) < len(found)
        self.behind = self._is_full() and not found
        return settled

    def forget(self, shown: list[Journey]) -> None:
        """Forget journeys."""
        if self.trace and shown:
            steps = {id(call.step) for one in shown for _, call in one.walk()}
            packets = {number for one in shown for number in one.packets}
            self.trace.steps[:] = [step for step in self.trace.steps if id(step) not in steps]
            self.trace.kin[:] = [kin for kin in self.trace.kin if kin.packet not in packets]

    def close(self) -> None:
        """Close the file."""
        self._tail.close()

    def _is_full(self) -> bool:
        return self.trace is not None and len(self.trace.steps) >= STEPS_MOST


def _is_over(journey: Journey) -> bool:
    """Whether each packet has ended; the function that frees packets is always traced."""
    return all(packet.freed or packet.joined or not packet.steps for packet in journey.packets.values())
