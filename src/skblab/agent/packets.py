"""Packets that the agent holds: the life of one, what can be decided about it, and the table of all."""

import contextlib
import enum
import errno
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from skblab.agent import abi
from skblab.agent.abi import Cause, Command, Hit
from skblab.agent.contracts import CONTRACTS, Contract, contract_named
from skblab.agent.link import Link, refusal
from skblab.edit import Checksum, Edited, difference, edited
from skblab.errors import GuestLost, PacketError, PacketGone, UsageError, check_times
from skblab.image.image import Image
from skblab.image.unwind import Frame, Unwinder
from skblab.packet import Packet
from skblab.verdict import MOST_COPIES, MOST_TIME_NS

MOST_DELAY_S = MOST_TIME_NS / 1e9
COLUMNS = ("function", "state", "for", "packet")

WRITE_REFUSALS = {
    errno.EOPNOTSUPP: (
        "this edit of a GSO packet is not sound: it stands for several segments, and all headers keep their sizes",
        "in the guest: ip link set DEVICE gro_max_size 0 (for what it receives), or gso_max_segs 1 (for what it sends)",
    ),
    errno.EMSGSIZE: ("the edited packet is longer than its device takes", "edit it before fragmentation: at ip_output"),
    errno.EBUSY: ("somebody else reads this packet, so it cannot be edited", "edit it at another function"),
}  # fmt: skip


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


class Holdings:
    """All packets that the agent holds now, by their numbers, and the commands about one of them.

    :param unwinder: returns what makes a backtrace of a hit's stack
    :param image: returns the image whose functions they are held at
    """

    def __init__(self, link: Link, unwinder: Callable[[], Unwinder], image: Callable[[], Image]) -> None:
        self.link = link
        self.unwinder = unwinder
        self._image = image
        self.lock = threading.Lock()  # of every packet's state: a rule may end with 10,000 of them
        self._of_rule: dict[int, dict[int, HeldPacket]] = {}

    def add(self, hit: Hit, function: str) -> "HeldPacket":
        """Note a packet that the agent has begun to hold."""
        held = HeldPacket(self, hit, function)
        self._of_rule.setdefault(hit.rule, {})[hit.packet] = held
        return held

    def contract(self, function: str) -> Contract:
        """Return the contract of a function."""
        return contract_named(function, self._image()) or Contract()

    def of_rule(self, number: int) -> "list[HeldPacket]":
        """Return the packets that a rule holds, oldest first."""
        return list(self._of_rule.get(number, {}).values())

    def end(self, event: abi.End) -> "list[HeldPacket]":
        """Note that a packet, or every packet of a rule, is held no more; return those."""
        state = State.DROPPED if event.dropped else State.RELEASED
        at_ns = self.link.channel.host_ns(event.at_ns)
        if event.packet == abi.ALL:
            ended = list(self._of_rule.pop(event.rule, {}).values())
        else:
            one = self._of_rule.get(event.rule, {}).pop(event.packet, None)
            ended = [one] if one else []
        self._end(ended, state, at_ns, event.cause)
        return ended

    def _end(self, packets: Iterable["HeldPacket"], state: State, at_ns: int, cause: Cause = Cause.DECIDED) -> None:
        """Note how packets went, and why. The link's reading thread wakes those who wait, once for all."""
        with self.lock:
            for held in packets:
                if held.state is State.HELD or held.state is State.LEAVING:  # as LIFE says; an enum is hashed slowly
                    held.state, held.ended_at_ns, held.cause = state, at_ns, cause

    def lose(self) -> None:
        """Note that the agent is gone with everything that it held."""
        of_rule, self._of_rule = self._of_rule, {}
        for packets in of_rule.values():
            self._end(packets.values(), State.LOST, 0)

    @contextlib.contextmanager
    def let_run(self) -> Iterator[None]:
        """Have the guest's kernel stand still for no decision meanwhile: one who decides waits for it."""
        with contextlib.suppress(GuestLost):
            self.decide(Command.LATER, 0, number=1)
        try:
            yield
        finally:
            with contextlib.suppress(GuestLost):
                self.decide(Command.LATER, 0, number=-1)

    def release_by_hand(self, packet: int = 0) -> None:
        """Release a packet that a debugger had the agent hold, or all of them (0)."""
        for number in [packet] if packet else list(self._of_rule.get(abi.BY_HAND, {})):
            self.decide(Command.RELEASE, number)

    def decide(self, command: Command, packet: int, *, after_ns: int = 0, number: int = 0) -> None:
        """Send the agent a decision about a packet: RELEASE, DISCARD or LATER. It may have gone by itself: no error."""
        self.link.send(abi.encode_decide(command, 0, packet=packet, after_ns=after_ns, number=number))

    def copy(self, packet: int, copies: int) -> None:
        """Have the agent send copies of a packet on their way."""
        (answer,) = self.link.ask_each(
            [lambda cookie: abi.encode_decide(Command.COPY, cookie, packet=packet, number=copies)], "copy"
        )
        _refuse_gone(answer.result, "duplicate")
        if answer.result < 0:
            raise refusal("copy", -answer.result)

    def write(self, packet: int, edited: Edited, *, within_mtu: bool) -> None:
        """Write a packet's bytes, from its network header on.

        :param within_mtu: no later function fragments it: it must fit its device's MTU
        :raises PacketError: the agent refused; the packet is as it was
        """
        flags = abi.WriteFlag(0)
        if within_mtu:
            flags |= abi.WriteFlag.WITHIN_MTU
        if edited.distrusted:
            flags |= abi.WriteFlag.DISTRUST
        (answer,) = self.link.ask_each(
            [
                lambda cookie: abi.encode_write(
                    cookie,
                    packet=packet,
                    data=edited.packet.data,
                    data_offset=edited.data_offset,
                    checksum=(edited.pending.start, edited.pending.offset),
                    flags=flags,
                )
            ],
            "writing a packet",
        )
        _refuse_gone(answer.result, "edit")
        if answer.result < 0:
            what, hint = WRITE_REFUSALS.get(-answer.result, ("the agent refused to write the packet", ""))
            raise PacketError(what, found=answer.note or os.strerror(-answer.result), hint=hint)


def _refuse_gone(result: int, what: str) -> None:
    """Refuse what the agent could not do to a packet that went by its lease, or with its rule, meanwhile."""
    if result == -errno.ENOENT:
        raise PacketGone(f"cannot {what} this packet: it has just gone")


class HeldPacket:
    """One packet that the agent holds while the guest's kernel runs on.

    ``release``, ``drop``: once. ``duplicate``, ``edit``, ``revert``: any number of times before that.
    """

    def __init__(self, holdings: Holdings, hit: Hit, function: str) -> None:
        self._holdings = holdings
        self.hit = hit  # the agent's record
        self.function = function
        self.held_at_ns = holdings.link.channel.host_ns(hit.at_ns)
        self.ended_at_ns = 0
        self.cause = Cause.DECIDED  # why it went, once it has
        self.state = State.HELD
        self.decided = False  # by release() or drop(): not by its lease, or with its rule
        self.quiet = False  # nobody waits to hear how it ends: the agent reports that within STEPS_SOON_MS

    # What follows is made when it is first asked for: a decision that needs none of it is not to wait for it.

    @functools.cached_property
    def original(self) -> Packet:
        """The packet as it came."""
        return Packet(self.hit.data, self.hit.protocol)

    @functools.cached_property
    def packet(self) -> Packet:
        """The packet, as edited."""
        return self.original

    @functools.cached_property
    def _pending(self) -> Checksum:
        return self._pending_at_first

    @property
    def _pending_at_first(self) -> Checksum:
        return Checksum(self.hit.checksum_start, self.hit.checksum_offset)

    @property
    def skb(self) -> int:
        """The address of its struct sk_buff in the guest."""
        return self.hit.skb

    def __repr__(self) -> str:
        return f"<HeldPacket {self.summary()}: {self.state.value}>"

    @property
    def age_s(self) -> float:
        """For how long it has been held, or was."""
        return ((self.ended_at_ns or self._holdings.link.clock.monotonic_ns) - self.held_at_ns) / 1e9

    @functools.cached_property
    def backtrace(self) -> tuple[Frame, ...]:
        """The kernel's frames when it was taken, from this function outwards, inlined ones too.

        :raises BuildFailed: the kernel's debug info cannot be read
        """
        return self._holdings.unwinder().backtrace(self.function, self.hit.stack)

    @property
    def row(self) -> tuple[str, ...]:
        """What a table says of it: ``COLUMNS``."""
        return self.function, self.state.value, f"{self.age_s:.3f} s", self.packet.summary()

    def _repr_html_(self) -> str:
        """Return what a notebook shows."""
        return self.packet.html(f"{self.summary()}; {self.state.value}, {self.age_s:.3f} s")

    def summary(self) -> str:
        """Return the packet in one line, and where it is held."""
        return f"{self.function}: {self.packet.summary()}"

    def release(self, *, after_s: float = 0.0) -> None:
        """Let it go on from the function where it was taken, now or after a time.

        :raises PacketGone: that has been decided already
        :raises UsageError: no such time
        """
        check_times(after_s=after_s, longest_s=MOST_DELAY_S)
        self._decide("release")
        self._holdings.decide(Command.RELEASE, self.hit.packet, after_ns=round(after_s * 1e9), number=self._how)

    def drop(self) -> None:
        """Free it.

        :raises PacketGone: that has been decided already
        """
        self._decide("drop")
        self._holdings.decide(Command.DISCARD, self.hit.packet, number=self._how)

    def later(self) -> None:
        """Have a kernel that stands still until this is decided on run on; it stays held."""
        if self.state is State.HELD and self._holdings.link.clock.is_virtual:
            self._holdings.decide(Command.LATER, self.hit.packet)

    def duplicate(self, copies: int = 1) -> None:
        """Send copies of it on their way, now; it stays held itself.

        :raises PacketGone: it is held no more
        :raises UsageError: so many are not made at once
        """
        if not 1 <= copies <= MOST_COPIES:
            raise UsageError(f"{copies} copies", found=f"1 to {MOST_COPIES}")
        self._require_held("duplicate")
        self._holdings.copy(self.hit.packet, copies)

    def edit(self, change: Callable[[Any], object], *, fix: bool = True) -> str:
        """Change it; return what was changed, as a diff, and what that does to others. It stays held.

        *change* gets the packet as scapy layers and changes them in place, or returns the packet to put in its place,
        or bytes: the new payload. Lengths and checksums follow where they were right, unless *fix* is false.

        :raises PacketGone: it is held no more
        :raises PacketError: the result cannot be written back; the packet is as it was
        """
        self._require_held("edit")
        return self._write(
            edited(self.packet, change, fix=fix, data_offset=self.hit.data_offset, pending=self._pending)
        )

    def revert(self) -> str:
        """Undo all edits: write it as it came; return what that changed, as a diff. It stays held.

        :raises PacketGone: it is held no more
        """
        self._require_held("revert")
        return self._write(Edited(self.original, self.hit.data_offset, self._pending_at_first))

    def wait(self, timeout_s: float) -> bool:
        """Wait until it is released, dropped or lost; return whether it is."""
        check_times(timeout_s=timeout_s)
        return self._holdings.link.wait_until(lambda: not LIFE[self.state], timeout_s)

    def _write(self, edited: Edited) -> str:
        """Write other bytes in the place of this packet's; return what that changes."""
        said = difference(self.packet, edited.packet)
        if said or edited.pending != self._pending:
            contract = self._holdings.contract(self.function)
            if contract.parsed:
                _check_like(edited.packet, self.packet)
            self._holdings.write(self.hit.packet, edited, within_mtu=contract.fragmented)
            self.packet = edited.packet
            self._pending = edited.pending
        return "\n".join(filter(None, (said, *edited.remarks)))

    @property
    def _how(self) -> int:
        return abi.QUIET if self.quiet else 0

    def _require_held(self, what: str) -> None:
        if self.state is not State.HELD:
            why = f"\n{self.cause}" if self.cause else ""
            raise PacketGone(f"cannot {what} this packet: it is {self.state.value}", found=self.summary() + why)

    def _decide(self, what: str) -> None:
        with self._holdings.lock:
            self._require_held(what)
            self.state, self.decided = State.LEAVING, True


def _check_like(packet: Packet, before: Packet) -> None:
    try:
        packet.check_like(before)
    except PacketError as error:
        free = ", ".join(name for name, contract in CONTRACTS.items() if not contract.parsed)
        error.hint = f"edit it where the kernel has not parsed it yet, or does not any more: {free}"
        raise
