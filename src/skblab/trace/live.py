"""Journeys of a trace that is being written: each is told as soon as it is over."""

import time
from pathlib import Path

from skblab.trace.file import Tail
from skblab.trace.journey import Journey, journeys
from skblab.trace.model import Trace
from skblab.trace.reader import Loader

SETTLED_NS = 200_000_000  # calls return after a packet's end, and what a rule did to it is told by another thread
STEPS_MOST = 20_000  # of journeys that are not over; each time all are looked at


class Live:
    """The journeys of a trace file as they end; what has been told is forgotten.

    ``pending``: some are over, and not settled yet. ``behind``: too many are not over; nothing more will be told.
    """

    def __init__(self, path: Path) -> None:
        """Begin to read."""
        self._tail = Tail(path)
        self._loader = Loader()
        self.pending = False
        self.behind = False

    @property
    def trace(self) -> Trace | None:
        """What is not forgotten yet."""
        return self._loader.trace

    def over(self) -> list[Journey]:
        """Read what has come; return the journeys that are over."""
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

    def forget(self, told: list[Journey]) -> None:
        """Forget journeys."""
        if self.trace and told:
            steps = {id(call.step) for one in told for _, call in one.walk()}
            packets = {number for one in told for number in one.packets}
            self.trace.steps[:] = [step for step in self.trace.steps if id(step) not in steps]
            self.trace.kin[:] = [kin for kin in self.trace.kin if kin.packet not in packets]

    def close(self) -> None:
        """Close the file."""
        self._tail.close()

    def _is_full(self) -> bool:
        return self.trace is not None and len(self.trace.steps) >= STEPS_MOST


def _is_over(journey: Journey) -> bool:
    """Whether each packet has ended; where that is, is always followed."""
    return all(packet.freed or packet.joined or not packet.steps for packet in journey.packets.values())
