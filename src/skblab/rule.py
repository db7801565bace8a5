"""A rule in one line of text: ``tcp_v4_rcv = drop @3 if tcp[tcpflags] & tcp-syn != 0``.

FUNCTION = VERDICT [@OCCURRENCE] [if FILTER] [inside FUNCTION [if FILTER]]

``skblab.verdict`` has the verdicts. Occurrences count the packets that the filter takes, from 1: ``@3``, ``@2-5``,
``@3-``, ``@every 10``, ``@random 10%``, ``@random 10% seed 7``. The filter is pcap-filter(7)'s, and may end in
conditions (``skblab.condition``). A rule that is inside a function matches only while a call of that function is
running, one whose packet that function's filter takes.
"""

import re
from dataclasses import dataclass, field

from skblab.errors import RuleError
from skblab.line import MOST_NUMBER, Line
from skblab.verdict import VERDICTS, Arguments

LEAST_PERCENT = 100 / (1 << 32)  # agent_arm.chance counts in parts of 2^32, and 0 of them is always
FUNCTION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=(?!=)")
OCCURRENCE = re.compile(r"@([0-9]{1,10})(-)?([0-9]{1,10})?$")
BARE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*($|if\s.*|inside\s.*|@.*)", re.DOTALL)
INSIDE = re.compile(r'^((?:[^"]|"[^"]*")*?)(?<=\s)inside(?=\s|$)')
OUTER = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)")


@dataclass(frozen=True)
class Occurrence:
    """Which matches count: from ``first`` to ``last`` (0: no end), every ``every``-th, or ``percent`` of them."""

    first: int = 1
    last: int = 0
    every: int = 0
    percent: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        numbers = (self.first, self.last, self.every, self.seed)
        percent = self.percent or 100  # 0: no chance is asked for
        if not (all(0 <= one <= MOST_NUMBER for one in numbers) and LEAST_PERCENT <= percent <= 100):
            raise RuleError("no such occurrence", found=f"{self!r}", hint=f"numbers up to {MOST_NUMBER}, 0 to 100 %")

    def __str__(self) -> str:
        if self.every:
            return f"@every {self.every}"
        if self.percent:
            return f"@random {str(self.percent).removesuffix('.0')}%" + (f" seed {self.seed}" if self.seed else "")
        if self.first == self.last:
            return f"@{self.first}"
        if (self.first, self.last) == (1, 0):
            return ""
        return f"@{self.first}-{self.last or ''}"


@dataclass(frozen=True)
class Inside:
    """Calls of another function, inside which a rule matches.

    :param function: the kernel function's name
    :param filter: of its packet; "": every call
    """

    function: str
    filter: str = ""

    @classmethod
    def parse(cls, text: str) -> "Inside | None":
        """Read what may stand behind ``inside``; None of nothing.

        :raises RuleError: with a caret under the fault
        """
        return _read_inside(Line(f" inside {text}")) if text.strip() else None

    def __str__(self) -> str:
        return f"inside {self.function}" + (f" if {self.filter}" if self.filter else "")


@dataclass(frozen=True)
class Rule(Arguments):
    """One rule: what happens to which packets at a function, and the verdict's arguments by keyword.

    :param function: the kernel function's name
    :param verdict: a word of ``skblab.verdict.VERDICTS``
    :param occurrence: which of the packets that the filter takes
    :param filter: a pcap-filter(7) expression, and conditions; "": every packet
    :param inside: only inside these calls of another function
    """

    function: str
    verdict: str
    occurrence: Occurrence = field(default_factory=Occurrence)
    filter: str = ""
    inside: Inside | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for one, kind in ((self.occurrence, Occurrence), (self.inside or Inside(""), Inside)):
            if not isinstance(one, kind):
                raise RuleError(f"no {kind.__name__}: {one!r}", hint="Occurrence(2, 2) is @2; or Rule.parse()")
        if self.verdict not in VERDICTS:
            raise RuleError(f"no such verdict: {self.verdict}", hint=f"one of: {', '.join(VERDICTS)}")

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule.

        :raises RuleError: with a caret under the fault
        """
        line = Line(text)
        found = FUNCTION.match(text)
        if not found:
            line.peek()
            line.fail("a rule begins with FUNCTION =", "for example: icmp_rcv = delay 300ms @2")
        inside = _read_inside(line)
        line.at = found.end()
        word = line.take()
        verdict = VERDICTS.get(word)
        if verdict is None:
            line.fail(f"no such verdict: {word}" if word else "a verdict is missing", f"one of: {', '.join(VERDICTS)}")
        arguments = verdict.read(line)
        occurrence = _read_occurrence(line)
        expression = _read_filter(line, "an occurrence (@3), a filter (if icmp) or inside FUNCTION may follow")
        return cls(found.group(1), word, occurrence, expression, inside, **arguments)

    @classmethod
    def parse_hold(cls, text: str) -> "Rule":
        """Read a rule that may leave out ``= hold``: ``icmp_rcv if icmp`` is ``icmp_rcv = hold if icmp``.

        :raises RuleError: with a caret under the fault
        """
        bare = BARE.fullmatch(text)
        return cls.parse(f"{bare.group(1)} = hold {bare.group(2)}" if bare else text)

    def __str__(self) -> str:
        words = [f"{self.function} =", self.action, str(self.occurrence), f"if {self.filter}" if self.filter else ""]
        return " ".join(filter(None, [*words, str(self.inside or "")]))

    @property
    def action(self) -> str:
        """The verdict with its arguments: ``delay 300ms``."""
        return " ".join(filter(None, (self.verdict, *VERDICTS[self.verdict].write(self))))


def _read_inside(line: Line) -> Inside | None:
    """Read the end of a rule, and cut it off."""
    found = INSIDE.match(line.text)
    if not found:
        return None
    line.text, rest = found.group(1), Line(line.text)
    rest.at = found.end()
    outer = OUTER.match(rest.text, rest.at)
    if not outer:
        rest.peek()
        rest.fail("a function is missing after inside", "inside tcp_v4_rcv if tcp port 80")
    rest.at = outer.end()
    return Inside(outer.group(1), _read_filter(rest, "a filter (if tcp port 80) may follow"))


def _read_filter(line: Line, hint: str) -> str:
    word = line.take()
    if not word:
        return ""
    if word != "if":
        line.fail(f"not understood here: {word}", hint)
    rest = line.text[line.at :].strip()
    if not rest:
        line.fail("a filter is missing after if", "see pcap-filter(7)", at=len(line.text))
    return rest


def _read_occurrence(line: Line) -> Occurrence:
    word = line.peek()
    if not word.startswith("@"):
        return Occurrence()
    line.take()
    if word == "@every":
        return Occurrence(every=line.number("after @every: how many"))
    if word == "@random":
        return _read_chance(line)
    found = OCCURRENCE.match(word)
    first, dash, last = found.groups() if found else ("0", None, None)
    if (
        not found
        or not 1 <= int(first) <= MOST_NUMBER
        or (last and (not dash or not int(first) <= int(last) <= MOST_NUMBER))
    ):
        line.fail(f"not an occurrence: {word}", "@3, @2-5, @3-, @every 10, @random 10%")
    return Occurrence(int(first), int(last) if last else 0 if dash else int(first))


def _read_chance(line: Line) -> Occurrence:
    word = line.take()
    try:
        percent = float(word.removesuffix("%"))
    except ValueError:
        percent = 0.0
    if not word.endswith("%") or not 0 < percent <= 100:
        line.fail(f"not a percentage: {word}" if word else "a percentage is missing", "@random 10%")
    if percent < LEAST_PERCENT:
        line.fail(f"too rare: {word}", "1e-7% at least")
    seed = line.number("after seed: a number") if line.take_if("seed") else 0
    return Occurrence(percent=percent, seed=seed)
