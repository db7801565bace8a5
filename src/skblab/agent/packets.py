"""A held packet's life, and what can be decided about it."""

import enum
import functools
import threading
import time
from typing import TYPE_CHECKING, Any

from skblab.agent.abi import Cause, Command, Hit
from skblab.agent.functions import TABLE, Takeover
from skblab.edit import Checksum, Edited, difference, edited
from skblab.errors import PacketError, PacketGone, UsageError
from skblab.image.unwind import Frame
from skblab.packet import Packet
from skblab.rule import MOST_COPIES, MOST_TIME_NS

if TYPE_CHECKING:
    from collections.abc import Callable

    from skblab.agent.control import Agent

MOST_DELAY_S = MOST_TIME_NS / 1e9


class State(enum.Enum):
    """Where a packet is: ``LEAVING`` is decided, but not yet reported by the agent."""

    HELD = "held"
    LEAVING = "leaving"
    RELEASED = "released"
    DROPPED = "dropped"
    LOST = "lost"


# The whole life of a held packet: what may follow what.
LIFE: dict[State, frozenset[State]] = {
    State.HELD: frozenset({State.LEAVING, State.RELEASED, State.DROPPED, State.LOST}),
    State.LEAVING: frozenset({State.RELEASED, State.DROPPED, State.LOST}),
    State.RELEASED: frozenset(),
    State.DROPPED: frozenset(),
    State.LOST: frozenset(),
}


class HeldPacket:
    """One packet that is set aside inside the guest's kernel, which runs on.

    ``release``, ``drop``: once. ``duplicate``, ``edit``, ``revert``: as often as one likes before that.
    """

    def __init__(self, agent: "Agent", hit: Hit, function: str) -> None:
        self._agent = agent
        self._lock = threading.Lock()
        self.hit = hit
        self.function = function
        self.packet = Packet(hit.data, hit.protocol)
        self._pending = self._pending_at_first = Checksum(hit.checksum_start, hit.checksum_offset)
        self.held_at_ns = agent.channel.host_ns(hit.at_ns)
        self.ended_at_ns = 0
        self.cause = Cause.DECIDED  # why it went, once it has
        self.state = State.HELD

    def __repr__(self) -> str:
        return f"<HeldPacket {self.summary()}: {self.state.value}>"

    @property
    def age_s(self) -> float:
        """For how long it has been held, or was."""
        return ((self.ended_at_ns or time.monotonic_ns()) - self.held_at_ns) / 1e9

    @functools.cached_property
    def backtrace(self) -> tuple[Frame, ...]:
        """The kernel's frames when it was taken, from this function outwards, inlined ones too.

        :raises BuildFailed: the kernel's debug info cannot be read
        """
        return self._agent.unwinder.backtrace(self.function, self.hit.stack)

    def summary(self) -> str:
        """Return the packet in one line, and where it is held."""
        return f"{self.function}: {self.packet.summary()}"

    def release(self, *, after_s: float = 0.0) -> None:
        """Let it go on from the function where it was taken, now or after a time.

        :raises PacketGone: that has been decided already
        :raises UsageError: no such time
        """
        if not 0 <= after_s <= MOST_DELAY_S:
            raise UsageError(f"release after {after_s:g} s", found=f"0 to {MOST_DELAY_S:g} s")
        self._decide("release")
        self._agent.decide(Command.RELEASE, self.hit.packet, after_ns=round(after_s * 1e9))

    def drop(self) -> None:
        """Free it.

        :raises PacketGone: that has been decided already
        """
        self._decide("drop")
        self._agent.decide(Command.DISCARD, self.hit.packet)

    def duplicate(self, copies: int = 1) -> None:
        """Send copies of it on their way, now; it stays held itself.

        :raises PacketGone: it is held no more
        :raises UsageError: so many are not made at once
        """
        if not 1 <= copies <= MOST_COPIES:
            raise UsageError(f"{copies} copies", found=f"1 to {MOST_COPIES}")
        self._require_held("duplicate")
        self._agent.decide(Command.COPY, self.hit.packet, number=copies)

    def edit(self, change: "Callable[[Any], object]", *, fix: bool = True) -> str:
        """Change it; return what was changed, as a diff, and what that does to others. It stays held.

        *change* gets the packet as scapy layers and changes them in place, or returns the packet to put in its place,
        or bytes: the new payload. Lengths and checksums follow where they were right, unless *fix* is false.

        :raises PacketGone: it is held no more
        :raises PacketError: what came out cannot be written back; the packet is as it was
        """
        self._require_held("edit")
        return self._write(
            edited(self.packet, change, fix=fix, data_offset=self.hit.data_offset, pending=self._pending)
        )

    def revert(self) -> str:
        """Take all edits back: write it as it came; return what that changed, as a diff. It stays held.

        :raises PacketGone: it is held no more
        """
        self._require_held("revert")
        first = Packet(self.hit.data, self.hit.protocol)
        return self._write(Edited(first, self.hit.data_offset, self._pending_at_first))

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has gone, one way or the other; whether it has."""
        return self._agent.wait_until(lambda: not LIFE[self.state], timeout_s)

    def end(self, state: State, at_ns: int, cause: Cause = Cause.DECIDED) -> None:
        """Note how it went, and why; those who wait are woken by the agent's reader, once for many packets."""
        with self._lock:
            if self.state in (State.HELD, State.LEAVING):  # LIFE says the same, but an enum is hashed slowly
                self.state = state
                self.ended_at_ns = at_ns
                self.cause = cause

    def _write(self, edited: Edited) -> str:
        """Write a packet in the place of this one; return what that changes."""
        said = difference(self.packet, edited.packet)
        if said or edited.pending != self._pending:
            takeover = TABLE.get(self.function, Takeover())
            if takeover.parsed:
                _check_like(edited.packet, self.packet)
            self._agent.write(self.hit.packet, edited, within_mtu=takeover.fragmented)
            self.packet = edited.packet
            self._pending = edited.pending
        return "\n".join(filter(None, (said, *edited.remarks)))

    def _require_held(self, what: str) -> None:
        if self.state is not State.HELD:
            why = f"\n{self.cause}" if self.cause else ""
            raise PacketGone(f"cannot {what} this packet: it is {self.state.value}", found=self.summary() + why)

    def _decide(self, what: str) -> None:
        with self._lock:
            self._require_held(what)
            self.state = State.LEAVING


def _check_like(packet: Packet, before: Packet) -> None:
    try:
        packet.check_like(before)
    except PacketError as error:
        free = ", ".join(name for name, takeover in TABLE.items() if not takeover.parsed)
        error.hint = f"edit it where the kernel has not parsed it yet, or does not any more: {free}"
        raise
