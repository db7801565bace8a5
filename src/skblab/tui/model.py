"""The held packets on the screen, their order and marks, without widgets or a terminal."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from skblab.agent.packets import HeldPacket, State
from skblab.agent.running import Running
from skblab.agent.streams import Hold
from skblab.decision import Decided, is_decided, places
from skblab.errors import GuestLost, UsageError
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.summary import ETH_P_IP
from skblab.verdict import VERDICTS

GONE = frozenset({State.RELEASED, State.DROPPED, State.LOST})


@dataclass(slots=True, eq=False)
class Row:
    """One held packet and its number on the screen."""

    number: int
    held: HeldPacket
    place: str = ""  # which rule holds it, as skblab.decision names it
    marked: bool = False
    leaves_at_ns: int = 0  # when it will be released after a time (CLOCK_MONOTONIC); 0: it will not

    @property
    def edited(self) -> bool:
        """Whether it was edited."""
        return self.held.packet.data != self.held.original.data


class HeldPackets:
    """The packets held by some rules, oldest first. close() disarms the rules and releases what is held.

    Packets come on the agent's reading thread and are queued until ``refresh`` takes them.

    :raises UsageError: a rule's verdict does not suit a screen
    :raises RuleError, UnknownFunction, UnsupportedVerdict: a rule cannot be armed
    """

    def __init__(self, lab: Lab, rules: Sequence[Rule]) -> None:
        for rule in rules:
            if VERDICTS[rule.verdict].needs == "gdb" or rule.hold_count:
                raise UsageError(
                    "a screen holds packets one by one", found=str(rule), hint=f"skblab run -r '{rule}' -- ..."
                )
        self._lab = lab
        self.decided = Decided(lab.guest.clock)
        self._places: dict[Hold, str] = {}
        self._count = 0
        self._running: list[Hold | Running] = []
        self.ended: tuple[Hold | Running, ...] = ()  # the rules, when they are in force no more
        self.rules_at_first = tuple(rules)
        self.rows: dict[int, Row] = {}
        assert Packet(bytes(20), ETH_P_IP).layers is not None  # imports scapy (0.4 s) before packets wait
        self._arm(rules)

    @property
    def running(self) -> Sequence[Hold | Running]:
        """The rules in force, in their order."""
        return tuple(self._running)

    @property
    def rules(self) -> list[Rule]:
        """The rules with their current filters."""
        return [one.armed.rule for one in self._running]

    @property
    def lost(self) -> int:
        """How many events were lost because the ring was full."""
        return self._lab.agent.channel.lost

    def _arm(self, rules: Sequence[Rule]) -> None:
        try:
            for rule in rules:  # in order: of several at one function the first that matches wins
                self._running.append(
                    self._lab.hold(rule.function, rule.filter, occurrence=rule.occurrence, inside=rule.inside)
                    if is_decided(rule)
                    else self._lab.rule(rule)
                )
        except BaseException:
            self.close()
            raise
        holds = [one for one in self._running if isinstance(one, Hold)]
        self._places = dict(zip(holds, places([one.armed.rule for one in holds]), strict=True))

    def refilter(self, expression: str) -> None:
        """Hold only packets that match a pcap filter from now on; held packets stay held.

        :raises RuleError: libpcap cannot compile it; nothing was changed
        """
        with self.decided.noting("filter", filter=expression):
            for one in self._running:
                if isinstance(one, Hold):
                    one.refilter(expression)

    def close(self) -> None:
        """Disarm the rules and release what is held."""
        self.refresh()
        self.ended = self.ended or tuple(self._running)
        while self._running:
            with contextlib.suppress(GuestLost):
                self._running.pop().close()

    def refresh(self) -> list[Row]:
        """Take new packets, remove those that are gone, and return the latter."""
        came = [(held, place) for one, place in self._places.items() for held in one.take_all()]
        for held, place in sorted(came, key=lambda one: one[0].held_at_ns):
            self._count += 1
            self.rows[self._count] = Row(self._count, held, place)
        gone = [row for row in self.rows.values() if row.held.state in GONE]
        for row in gone:
            del self.rows[row.number]
        return gone

    def in_hand(self) -> list[Row]:
        """Return the rows of held packets and of packets that will be released after a time, oldest first."""
        return [row for row in self.rows.values() if row.held.state is State.HELD or row.leaves_at_ns]

    def marked(self) -> list[Row]:
        """Return the marked rows of in_hand()."""
        return [row for row in self.in_hand() if row.marked]
