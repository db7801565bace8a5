"""Which packets a person has in hand, in which order, which of them are marked: no widget, no terminal."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass

from skblab.agent.packets import HeldPacket, State
from skblab.agent.running import Running
from skblab.agent.streams import Hold
from skblab.errors import GuestLost, UsageError
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.summary import ETH_P_IP

GONE = frozenset({State.RELEASED, State.DROPPED, State.LOST})


@dataclass(slots=True, eq=False)
class Row:
    """One held packet, under the number by which people speak of it."""

    number: int
    held: HeldPacket
    marked: bool = False
    leaves_at_ns: int = 0  # where it is to be released after a time: CLOCK_MONOTONIC

    @property
    def edited(self) -> bool:
        """Whether it is not as it came."""
        return self.held.packet.data != self.held.original.data


class HeldPackets:
    """The packets that some rules set aside, oldest first. Close it to disarm the rules; what is held is released.

    Packets come on the agent's reading thread and wait there until ``refresh`` takes them in.

    :raises UsageError: a rule's verdict is none for a screen
    :raises RuleError, UnknownFunction, UnsupportedVerdict: a rule cannot be put in force
    """

    def __init__(self, lab: Lab, rules: Sequence[Rule]) -> None:
        for rule in rules:
            if rule.verdict == "stop" or rule.hold_count:
                raise UsageError(
                    "a screen holds packets one by one", found=str(rule), hint=f"skblab run -r '{rule}' -- ..."
                )
        self._lab = lab
        self._count = 0
        self._running: list[Hold | Running] = []
        self.rows: dict[int, Row] = {}
        assert Packet(bytes(20), ETH_P_IP).layers is not None  # scapy takes 0.4 s to import: not while packets wait
        self._arm(rules)

    @property
    def running(self) -> Sequence[Hold | Running]:
        """The rules in force, in their order."""
        return tuple(self._running)

    @property
    def rules(self) -> list[Rule]:
        """The rules, as they are now."""
        return [one.armed.rule for one in self._running]

    @property
    def lost(self) -> int:
        """How many events the agent could not tell, for nobody read them in time."""
        return self._lab.agent.channel.lost

    def _arm(self, rules: Sequence[Rule]) -> None:
        try:
            for rule in rules:  # of several at one function the first that matches wins
                self._running.append(
                    self._lab.hold(rule.function, rule.filter, occurrence=rule.occurrence)
                    if rule.verdict == "hold"
                    else self._lab.rule(rule)
                )
        except BaseException:
            self.close()
            raise

    def refilter(self, expression: str) -> None:
        """Hold only what a pcap filter takes from now on; what is held stays held.

        :raises RuleError: libpcap does not understand it; nothing was changed
        """
        for one in self._running:
            if isinstance(one, Hold):
                one.refilter(expression)

    def close(self) -> None:
        """Disarm the rules; what is held is released."""
        self.refresh()
        while self._running:
            with contextlib.suppress(GuestLost):
                self._running.pop().close()

    def refresh(self) -> list[Row]:
        """Take in what has come, forget what has gone, and return the latter."""
        came = [held for one in self._running if isinstance(one, Hold) for held in one.take_all()]
        for held in sorted(came, key=lambda held: held.held_at_ns):
            self._count += 1
            self.rows[self._count] = Row(self._count, held)
        gone = [row for row in self.rows.values() if row.held.state in GONE]
        for row in gone:
            del self.rows[row.number]
        return gone

    def in_hand(self) -> list[Row]:
        """Return the rows about which there is something to decide or to wait for, oldest first."""
        return [row for row in self.rows.values() if row.held.state is State.HELD or row.leaves_at_ns]

    def marked(self) -> list[Row]:
        """Return the marked ones of them."""
        return [row for row in self.in_hand() if row.marked]
