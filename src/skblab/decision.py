"""A decision in one line of text: ``2.104s icmp_rcv = release @2``; and a run's decisions, carried out and noted down.

TIME FUNCTION = release | drop | delay TIME | duplicate [N] | edit FIELD=VALUE[,...] [fix=False] | revert, @N
TIME interrupt
TIME filter [FILTER]

The time is the run's, since its command began. ``@N`` is the packet that a rule holds at that function, as the rule
counts it; ``icmp_rcv:2`` is the second rule that holds there. ``interrupt`` is a Ctrl-C for the command; ``filter``
replaces the filter of every rule that holds.
"""

import collections
import contextlib
import dataclasses
import os
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from skblab.agent.packets import LIFE, HeldPacket, State
from skblab.agent.streams import Hold
from skblab.clock import Clock
from skblab.edit import changing
from skblab.errors import GuestLost, SkblabError, UsageError
from skblab.line import Line
from skblab.rule import Rule
from skblab.verdict import MOST_TIME_NS, VERDICTS, Arguments

PLACE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*(?::[0-9]{1,4})?)\s*=(?!=)")
OCCURRENCE = re.compile(r"@([1-9][0-9]{0,9})")
PLAIN = ("release", "drop", "revert")
WITH_ARGUMENTS = ("delay", "duplicate", "edit")
INTERRUPT, FILTER = "interrupt", "filter"
HINT = "for example: 2.5s icmp_rcv = release @1"


def places(rules: Sequence[Rule]) -> list[str]:
    """Return a name for each rule that decisions are about: its function, of the second one there ``FUNCTION:2``."""
    met = collections.Counter[str]()
    names = []
    for rule in rules:
        met[rule.function] += 1
        number = met[rule.function]
        names.append(rule.function if number == 1 else f"{rule.function}:{number}")
    return names


def by_hand(decision: "Decision") -> "Decision":
    """Return a decision of a person's, whose time is not more exact than a millisecond."""
    return dataclasses.replace(decision, at_ns=decision.at_ns // 10**6 * 10**6)


def is_decided(rule: Rule) -> bool:
    """Whether a rule's packets wait for a decision."""
    return rule.verdict == "hold" and not rule.hold_count


@dataclass(frozen=True)
class Decision:
    """What is done at a moment of a run.

    :param at_ns: since the command began; not before that
    :param word: what is done
    :param place: of a packet: which rule holds it, as ``places()`` names them
    :param occurrence: of a packet: its number
    :param given: the word's arguments
    :param filter: of ``filter``
    """

    at_ns: int
    word: str
    place: str = ""
    occurrence: int = 0
    given: Arguments = field(default_factory=Arguments)
    filter: str = ""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a decision.

        :raises RuleError: with a caret under the fault
        """
        line = Line(text)
        at_ns = line.time_ns(MOST_TIME_NS)
        found = PLACE.match(text, line.at)
        if not found:
            return cls._of_the_run(line, at_ns)
        line.at = found.end()
        word, given = line.take(), Arguments()
        if word in WITH_ARGUMENTS:
            given = Arguments(**VERDICTS[word].read(line))
            if given.jitter_ns:
                line.fail("a decision is exact", "delay 300ms, without +-")
        elif word not in PLAIN:
            line.fail(f"no such decision: {word}" if word else "what is done?", ", ".join((*PLAIN, *WITH_ARGUMENTS)))
        occurrence = OCCURRENCE.fullmatch(line.take())
        if not occurrence:
            line.fail("which packet?", HINT)
        if line.take():
            line.fail("not understood here", HINT)
        return cls(at_ns, word, found[1].removesuffix(":1"), int(occurrence[1]), given)

    @classmethod
    def _of_the_run(cls, line: Line, at_ns: int) -> Self:
        word = line.take()
        rest = line.text[line.at :].strip()
        if word == FILTER:
            return cls(at_ns, word, filter=rest)
        if word != INTERRUPT or rest:
            line.fail("a function with =, interrupt, or filter, comes behind the time", HINT)
        return cls(at_ns, word)

    def __str__(self) -> str:
        at = f"{self.at_ns / 1e9:.9f}".rstrip("0").rstrip(".") + "s"
        if not self.place:
            return f"{at} {self.word} {self.filter}".rstrip()
        words = [self.word, *(VERDICTS[self.word].write(self.given) if self.word in WITH_ARGUMENTS else [])]
        return f"{at} {self.place} = {' '.join(filter(None, words))} @{self.occurrence}"

    def carry_out(self, held: HeldPacket) -> None:
        """Do it with its packet.

        :raises PacketGone: that is held no more
        :raises PacketError: it cannot be edited so
        """
        match self.word:
            case "release":
                held.release()
            case "delay":
                held.release(after_s=self.given.delay_ns / 1e9)
            case "drop":
                held.drop()
            case "duplicate":
                held.duplicate(self.given.copies)
            case "edit":
                held.edit(changing(self.given.changes), fix=self.given.fix)
            case _:
                held.revert()


def went(decided: Sequence[tuple[str, HeldPacket]]) -> tuple[str, ...]:
    """Return how packets went, in the order in which they did: ``icmp_rcv @2 released``.

    :param decided: each with its place, in the order of the decisions
    """
    gone: dict[int, tuple[str, HeldPacket]] = {}
    for place, held in decided:
        if held.decided and not LIFE[held.state]:
            gone.pop(id(held), None)  # of two that went at the same moment, the one that was decided first
            gone[id(held)] = (place, held)
    return tuple(
        f"{place} @{held.hit.occurrence} {held.state.value}"
        for place, held in sorted(gone.values(), key=lambda one: one[1].ended_at_ns)
        if held.state is not State.LOST
    )


class Deciding:
    """Carries out a run's decisions in their order: each when its time has come, and its packet is held.

    It runs on the thread that waits for the command, so that in virtual time each has its exact moment. ``fileno()`` is
    readable when a packet has come.

    :raises RuleError: a decision cannot be parsed
    :raises UsageError: it is about a packet that no rule holds
    """

    def __init__(self, decisions: Sequence[Decision | str], rules: Sequence[Rule]) -> None:
        self._left = collections.deque(
            one if isinstance(one, Decision) else Decision.parse(one) for one in decisions
        )  # fmt: skip
        there = places([rule for rule in rules if is_decided(rule)])
        for one in self._left:
            if one.place and one.place not in there:
                raise UsageError(f"no rule holds at {one.place}: {one}", hint=f"the rule {one.place} = hold")
        self._there = iter(there)
        self._holds: dict[str, Hold] = {}
        self._held: dict[tuple[str, int], HeldPacket] = {}
        self._decided: list[tuple[str, HeldPacket]] = []
        self._failed: list[str] = []
        self._came = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._began_ns = 0

    def __bool__(self) -> bool:
        return bool(self._left)

    def fileno(self) -> int:
        """Return a descriptor that is readable when a packet has come."""
        return self._came

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._came)

    def begin(self, now_ns: int) -> None:
        """Note that the command begins."""
        self._began_ns = now_ns

    def note(self, _: object) -> None:
        """Note that a packet has come; on any thread."""
        os.eventfd_write(self._came, 1)

    def follow(self, hold: Hold) -> None:
        """Decide about the packets of the next rule that holds."""
        self._holds[next(self._there)] = hold

    def due_s(self, now_ns: int) -> float | None:
        """Return how long the next decision has still to wait; None if its packet is missing, or all are done."""
        if not self._left:
            return None
        left_ns = self._began_ns + self._left[0].at_ns - now_ns
        return left_ns / 1e9 if left_ns > 0 else 0.0 if self._is_possible(self._left[0]) else None

    def carry_out(self, now_ns: int, interrupt: Callable[[], object]) -> None:
        """Carry out what is due."""
        while self.due_s(now_ns) == 0:
            one = self._left.popleft()
            try:
                if one.word == INTERRUPT:
                    interrupt()
                elif one.word == FILTER:
                    for hold in self._holds.values():
                        hold.refilter(one.filter)
                else:
                    held = self._held[one.place, one.occurrence]
                    one.carry_out(held)
                    self._decided.append((one.place, held))
            except GuestLost:
                raise
            except SkblabError as error:
                self._failed.append(f"{one}: {error.what}")

    def hear(self) -> None:
        """Take the packets that have come."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._came)
        for place, hold in self._holds.items():
            self._held |= {(place, held.hit.occurrence): held for held in hold.take_all()}

    def _is_possible(self, one: Decision) -> bool:
        return not one.place or (one.place, one.occurrence) in self._held

    @property
    def undecided(self) -> tuple[str, ...]:
        """The decisions that could not be carried out, and why."""
        ended, missing = "the command has ended before", "no such packet was held"
        return (*self._failed, *(f"{one}: {ended if self._is_possible(one) else missing}" for one in self._left))

    @property
    def went(self) -> tuple[str, ...]:
        """How the packets went."""
        return went(self._decided)


class Decided:
    """Notes down what is decided in a run, as it is done.

    :param clock: the guest's
    """

    def __init__(self, clock: Clock) -> None:
        self._noted: list[Decision] = []
        self._clock = clock
        self._began_ns = clock.monotonic_ns
        self._packets: list[tuple[int, str, HeldPacket]] = []
        self._ended = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Note that the command begins now."""
        self._began_ns = self._clock.monotonic_ns

    def end(self) -> None:
        """Note that the command has ended: what is decided now it does not see any more."""
        self._ended = True

    def interrupt(self) -> None:
        """Note that the command gets a Ctrl-C now, unless it has ended."""
        with self.noting(INTERRUPT):
            self._ended = True

    @contextlib.contextmanager
    def noting(self, word: str, place: str = "", held: HeldPacket | None = None, **given: Any) -> Iterator[None]:  # noqa: ANN401
        """Note a decision that the block carries out, unless it raises.

        :param given: the word's arguments
        """
        at_ns, counts = self._clock.monotonic_ns - self._began_ns, not self._ended
        yield
        filter_, occurrence = given.pop(FILTER, ""), held.hit.occurrence if held else 0
        with self._lock:
            if not counts:
                return
            self._noted.append(Decision(at_ns, word, place, occurrence, Arguments(**given), filter_))
            if held:
                self._packets.append((at_ns, place, held))

    @property
    def decisions(self) -> tuple[Decision, ...]:
        """The decisions, in their order."""
        noted = sorted(self._noted, key=lambda one: one.at_ns)
        return tuple(noted if self._clock.is_virtual else map(by_hand, noted))

    @property
    def went(self) -> tuple[str, ...]:
        """How the packets went."""
        return went([(place, held) for _, place, held in sorted(self._packets, key=lambda one: one[0])])
