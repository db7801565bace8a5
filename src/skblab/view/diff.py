"""Two journeys side by side: the functions that one packet entered and the other one did not."""

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass

from skblab.trace.journey import Call, Journey
from skblab.trace.model import Trace
from skblab.trace.words import drop_in_words

WITH_PORTS = re.compile(r": (Flags|UDP)")
PORTS_AND_LENGTH = re.compile(r"\.\d+(?= > )|\.\d+(?=: )|, length \d+$")
NUMBERS = re.compile(r", (id|seq|ack|win|urg) [0-9:]+|, options \[.*?\]")


@dataclass(frozen=True)
class Line:
    """A call at its depth. *mark*: " " in both journeys, "-" in the first only, "+" in the second only."""

    mark: str
    depth: int
    name: str
    reason: str = ""
    took_ns: tuple[int | None, int | None] = (None, None)


def compare(first: tuple[Trace, Journey], second: tuple[Trace, Journey]) -> list[Line]:
    """Return both journeys as one list of lines, as diff does."""
    ours, theirs = list(first[1].walk()), list(second[1].walk())
    matcher = difflib.SequenceMatcher(a=_keys(first[0], ours), b=_keys(second[0], theirs), autojunk=False)
    lines: list[Line] = []
    for kind, a, b, c, d in matcher.get_opcodes():
        if kind == "equal":
            lines += [_line(first[0], " ", one, other) for one, other in zip(ours[a:b], theirs[c:d], strict=True)]
        else:
            lines += [_line(first[0], "-", one) for one in ours[a:b]]
            lines += [_line(second[0], "+", one) for one in theirs[c:d]]
    return lines


def differ(lines: list[Line]) -> bool:
    """Whether the journeys differ."""
    return any(line.mark != " " for line in lines)


def alike(journeys: list[Journey], like: Journey) -> Journey | None:
    """Return the first journey whose packet is of the same kind, or None."""
    return next((one for one in journeys if kind(one) == kind(like)), None)


def kind(journey: Journey) -> str:
    """Return a packet's summary without ports, and without the numbers that count packets and bytes."""
    said = journey.first.summary
    if WITH_PORTS.search(said):
        said = PORTS_AND_LENGTH.sub("", said)
    return NUMBERS.sub("", said)


def _keys(trace: Trace, calls: list[tuple[int, Call]]) -> list[tuple[int, str, str]]:
    return [(depth, call.step.function.name, drop_in_words(trace, call)) for depth, call in calls]


def _line(trace: Trace, mark: str, one: tuple[int, Call], other: tuple[int, Call] | None = None) -> Line:
    depth, call = one
    took = (call.step.took_ns, other[1].step.took_ns if other else None)
    return Line(mark, depth, call.step.function.name, drop_in_words(trace, call), took)


def hunks(lines: list[Line], context: int = 3) -> Iterator[list[Line]]:
    """Yield the lines around each difference, as ``diff -u`` does."""
    wanted = {
        near for at, line in enumerate(lines) if line.mark != " " for near in range(at - context, at + context + 1)
    }
    run: list[Line] = []
    for at, line in enumerate(lines):
        if at in wanted:
            run.append(line)
        elif run:
            yield run
            run = []
    if run:
        yield run
