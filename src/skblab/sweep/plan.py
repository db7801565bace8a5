"""Which faults a sweep tries: each packet of a conversation with each verdict, alone or two at once."""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from skblab.edit import changing, corrupting
from skblab.errors import PacketError, RuleError, check_lists
from skblab.packet import Packet
from skblab.rule import Inside, Occurrence, Rule
from skblab.sweep.cell import CellOutcome, Scenario, Seen
from skblab.verdict import VERDICTS as KNOWN

REORDER = "reorder"  # a packet behind the one that follows it at the same function
CORRUPT = "corrupt"  # a rule's verdict, which needs a payload
VERDICTS = ("drop", "duplicate", "delay 300ms", REORDER, CORRUPT)


@dataclass(frozen=True)
class Target:
    """A packet of the conversation without a fault: the *number*-th at its function."""

    row: int
    function: str
    number: int
    is_last: bool
    seen: Seen


@dataclass(frozen=True)
class Fault:
    """What happens to one packet: a row and a column of the table, and the rule."""

    row: int
    verdict: str
    rule: Rule


Faults = tuple[Fault, ...]


def targets(baseline: CellOutcome) -> list[Target]:
    """Return the packets of the run without a fault, in the order in which they came."""
    totals: dict[str, int] = {}
    for one in baseline.packets:
        totals[one.function] = totals.get(one.function, 0) + 1
    counted: dict[str, int] = {}
    found = []
    for row, one in enumerate(baseline.packets, 1):
        number = counted[one.function] = counted.get(one.function, 0) + 1
        found.append(Target(row, one.function, number, number == totals[one.function], one))
    return found


def check(verdicts: Sequence[str]) -> None:
    """Check that each is a verdict of rules, or "reorder", and another one than those before.

    :raises RuleError: it is not
    """
    check_lists(verdicts=verdicts)
    seen = set()
    for verdict in verdicts:
        rule = None if verdict == REORDER else Rule.parse(f"f = {verdict}")
        if rule in seen:
            raise RuleError(f"named twice: {verdict}", hint="each verdict once: a cell stands once in the table")
        seen.add(rule)
        if rule is None:
            continue
        if rule.occurrence != Occurrence():
            raise RuleError(f"a sweep says at which packet: {verdict}", hint="a verdict without @ and without if")
        if KNOWN[rule.verdict].needs == "gdb":
            raise RuleError(f"a sweep is in virtual time, and gdb stops a kernel in real time: {verdict}", hint="trace")


def fault_of(target: Target, verdict: str, scenario: Scenario) -> Fault | None:
    """Return the fault that a verdict is for a packet; None: it has no meaning for this one."""
    at = Occurrence(target.number, target.number)
    if verdict == REORDER:
        if target.is_last:
            return None
        both = Occurrence(target.number, target.number + 1)
        inside = Inside.parse(scenario.inside)
        rule = Rule(target.function, "hold", both, scenario.filter, inside, hold_count=2, order="reverse")
        return Fault(target.row, verdict, rule)
    behind = f" if {scenario.filter}" if scenario.filter else ""
    behind += f" inside {scenario.inside}" if scenario.inside else ""
    rule = Rule.parse(f"{target.function} = {verdict} {at}{behind}")
    return Fault(target.row, verdict, rule) if _has_what_changes(target.seen.packet, rule) else None


def _has_what_changes(packet: Packet, rule: Rule) -> bool:
    """Whether a packet has the fields that a rule changes, or the payload that it corrupts."""
    if not KNOWN[rule.verdict].changes_bytes:
        return True
    change = corrupting(1, "") if rule.verdict == CORRUPT else changing(rule.changes)
    try:
        change(packet.dissected())
    except (PacketError, RuleError):
        return False
    return True


def singles(baseline: CellOutcome, verdicts: Sequence[str], scenario: Scenario) -> Iterator[Faults]:
    """Yield each packet with each verdict."""
    for target in targets(baseline):
        for verdict in verdicts:
            if fault := fault_of(target, verdict, scenario):
                yield (fault,)


def pairs(alone: Sequence[Faults], count: int, seed: int) -> list[Faults]:
    """Return so many pairs of faults of two packets, chosen by a seed, in the order of the packets."""
    every = [(a, b) for (a,), (b,) in itertools.combinations(alone, 2) if a.row != b.row]
    chosen = random.Random(seed).sample(range(len(every)), min(count, len(every)))  # noqa: S311 - to be repeated
    return [every[place] for place in sorted(chosen)]


def rules(faults: Faults) -> tuple[str, ...]:
    """Return the rules of some faults.

    A packet that a rule takes is not counted by the rules behind it. So the rule of a later packet stands before that
    of an earlier one.
    """
    return tuple(str(fault.rule) for fault in sorted(faults, key=lambda one: one.row, reverse=True))
