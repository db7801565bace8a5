"""A rule in one line of text: ``tcp_v4_rcv = drop @3 if tcp[tcpflags] & tcp-syn != 0``.

FUNCTION = VERDICT [@OCCURRENCE] [if FILTER]

======================================  ================================================================
verdict                                 what happens to the packet
======================================  ================================================================
accept                                  it goes on; later rules of the same function do not see it
trace                                   it goes on, and is told of
hold [N] [release fifo|reverse|random]  it is set aside until it is released, or until N are there
delay TIME [+-JITTER]                   it is set aside for that time: 300ms, 1.5s, 20us
drop [REASON]                           it is freed, with a reason of the kernel's (a number, or NO_SOCKET ...)
duplicate [N]                           the function runs for N copies (1) before it runs for the packet
edit FIELD=VALUE[,...] [fix=False]      it goes on changed: edit ip.ttl=3,icmp.seq=7; ip:2 is an inner IP header
stop                                    the whole kernel stands still under gdb
======================================  ================================================================

Occurrences count the packets that the filter takes, from 1: ``@3``, ``@2-5``, ``@3-``, ``@every 10``,
``@random 10%``, ``@random 10% seed 7``. The filter is of pcap-filter(7).
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from skblab.errors import RuleError

LEAST_PERCENT = 100 / (1 << 32)  # agent_arm.chance counts in parts of 2^32, and 0 of them is always
MOST_COPIES = 1000
MOST_NUMBER = (1 << 31) - 1
MOST_TIME_NS = 365 * 86400 * 1_000_000_000
UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
ORDERS = ("fifo", "reverse", "random")
WORD = re.compile(r"\s*(\S+)")
FUNCTION = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*=(?!=)")
TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s)")
OCCURRENCE = re.compile(r"@([0-9]{1,10})(-)?([0-9]{1,10})?$")
BARE = re.compile(r"\s*([A-Za-z_][A-Za-z0-9_.]*)\s*($|if\s.*|@.*)", re.DOTALL)
PART = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,\s"])*')  # a comma or a blank in quotes belongs to its part
CHANGE = re.compile(r'([A-Za-z0-9_]+(?::[0-9]{1,2})?\.[A-Za-z0-9_]+)=(?:"((?:\\.|[^"\\])*)"|([^,\s"]+))$')
UNQUOTED = re.compile(r'[^,\s"#]+')
UNFIXED = "fix=False"


@dataclass(frozen=True, slots=True)
class Occurrence:
    """Which matches count: from ``first`` to ``last`` (0: no end), each ``every``-th, by a chance of ``percent``."""

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


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. ``verdict`` is a word of the table above; the other fields are its arguments where it has any."""

    function: str
    verdict: str
    occurrence: Occurrence = field(default_factory=Occurrence)
    filter: str = ""
    hold_count: int = 0
    order: str = "fifo"
    delay_ns: int = 0
    jitter_ns: int = 0
    reason: str = ""
    copies: int = 1
    changes: tuple[tuple[str, str], ...] = ()
    fix: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.hold_count <= MOST_NUMBER:
            raise RuleError(f"{self.hold_count} packets to hold", hint=f"up to {MOST_NUMBER}; 0: all")
        if not 1 <= self.copies <= MOST_COPIES:
            raise RuleError(f"{self.copies} copies", hint=f"1 to {MOST_COPIES}")
        if not all(0 <= one <= MOST_TIME_NS for one in (self.delay_ns, self.jitter_ns)):
            raise RuleError(f"a delay of {self.delay_ns} ns +- {self.jitter_ns} ns", hint="at most 365 days")

    @classmethod
    def parse(cls, text: str) -> "Rule":
        """Read a rule.

        :raises RuleError: with a caret under the fault
        """
        return _Parser(text).rule()

    @classmethod
    def parse_hold(cls, text: str) -> "Rule":
        """Read a rule where holding goes without saying: ``icmp_rcv if icmp`` is ``icmp_rcv = hold if icmp``.

        :raises RuleError: with a caret under the fault
        """
        bare = BARE.fullmatch(text)
        return cls.parse(f"{bare.group(1)} = hold {bare.group(2)}" if bare else text)

    def __str__(self) -> str:
        words = [f"{self.function} =", self.action, str(self.occurrence)]
        return " ".join(filter(None, words)) + (f" if {self.filter}" if self.filter else "")

    @property
    def action(self) -> str:
        """The verdict with its arguments: ``delay 300ms``."""
        return " ".join(filter(None, (self.verdict, *self._arguments())))

    def _arguments(self) -> list[str]:
        match self.verdict:
            case "hold":
                return [str(self.hold_count or "")] + (["release", self.order] if self.order != "fifo" else [])
            case "delay":
                return [_time(self.delay_ns)] + ([f"+-{_time(self.jitter_ns)}"] if self.jitter_ns else [])
            case "drop":
                return [self.reason]
            case "duplicate":
                return [str(self.copies)] if self.copies != 1 else []
            case "edit":
                changes = ",".join(f"{name}={_quoted(value)}" for name, value in self.changes)
                return [changes, "" if self.fix else UNFIXED]
        return []


def _time(ns: int) -> str:
    """Return a time in its largest whole unit."""
    for unit in ("s", "ms", "us"):
        if ns and ns % UNITS_NS[unit] == 0:
            return f"{ns // UNITS_NS[unit]}{unit}"
    return f"{ns}ns"


def _quoted(value: str) -> str:
    """Return an edit's value as a rule writes it: in quotes where it would end before."""
    if UNQUOTED.fullmatch(value):
        return value
    escaped = re.sub(r'\\.|"', lambda found: found[0] if len(found[0]) > 1 else '\\"', value, flags=re.DOTALL)
    return f'"{escaped}"'


class _Parser:
    """Reads one line, word by word, and knows where it is."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self.word_at = 0

    def fail(self, what: str, hint: str = "", *, at: int | None = None) -> NoReturn:
        place = self.word_at if at is None else at
        raise RuleError(what, found=f"{self.text}\n{' ' * place}^", hint=hint)

    def peek(self) -> str:
        """Return the next word, or nothing at the end."""
        found = WORD.match(self.text, self.at)
        self.word_at = found.start(1) if found else len(self.text)
        return found.group(1) if found else ""

    def take(self) -> str:
        """Return the next word and go behind it."""
        word = self.peek()
        self.at = self.word_at + len(word)
        return word

    def rule(self) -> Rule:
        found = FUNCTION.match(self.text)
        if not found:
            self.peek()
            self.fail("a rule begins with FUNCTION =", "for example: icmp_rcv = delay 300ms @2")
        self.at = found.end()
        verdict = self.take()
        arguments = VERDICTS.get(verdict)
        if arguments is None:
            self.fail(
                f"no such verdict: {verdict}" if verdict else "a verdict is missing", f"one of: {', '.join(VERDICTS)}"
            )
        fields = arguments(self)
        occurrence = self.occurrence()
        return Rule(found.group(1), verdict, occurrence, self.filter(), **fields)

    def filter(self) -> str:
        word = self.take()
        if not word:
            return ""
        if word != "if":
            self.fail(f"not understood here: {word}", "an occurrence (@3) or a filter (if icmp) may follow")
        rest = self.text[self.at :].strip()
        if not rest:
            self.fail("a filter is missing after if", "see pcap-filter(7)", at=len(self.text))
        return rest

    def occurrence(self) -> Occurrence:
        word = self.peek()
        if not word.startswith("@"):
            return Occurrence()
        self.take()
        if word == "@every":
            return Occurrence(every=self.number("after @every: how many"))
        if word == "@random":
            return self.chance()
        found = OCCURRENCE.match(word)
        first, dash, last = found.groups() if found else ("0", None, None)
        if (
            not found
            or not 1 <= int(first) <= MOST_NUMBER
            or (last and (not dash or not int(first) <= int(last) <= MOST_NUMBER))
        ):
            self.fail(f"not an occurrence: {word}", "@3, @2-5, @3-, @every 10, @random 10%")
        return Occurrence(int(first), int(last) if last else 0 if dash else int(first))

    def chance(self) -> Occurrence:
        word = self.take()
        try:
            percent = float(word.removesuffix("%"))
        except ValueError:
            percent = 0.0
        if not word.endswith("%") or not 0 < percent <= 100:
            self.fail(f"not a percentage: {word}" if word else "a percentage is missing", "@random 10%")
        if percent < LEAST_PERCENT:
            self.fail(f"too rare: {word}", "1e-7% at least")
        seed = 0
        if self.peek() == "seed":
            self.take()
            seed = self.number("after seed: a number")
        return Occurrence(percent=percent, seed=seed)

    def number(self, what: str, most: int = MOST_NUMBER) -> int:
        word = self.take()
        if not word.isdecimal() or len(word) > len(str(MOST_NUMBER)) or not 0 < int(word) <= most:
            self.fail(f"{what}, not {word!r}" if word else f"{what}?", f"1 to {most}" if word else "")
        return int(word)

    def time_ns(self, word: str) -> int:
        found = TIME.fullmatch(word)
        if not found:
            self.fail(f"not a time: {word}" if word else "a time is missing", "300ms, 1.5s, 20us")
        time_ns = float(found.group(1)) * UNITS_NS[found.group(2)]
        if time_ns > MOST_TIME_NS:
            self.fail(f"too long: {word}", "at most 365 days")
        return round(time_ns)

    def hold(self) -> dict[str, Any]:
        count = self.number("how many to hold") if self.peek().isdecimal() else 0
        if self.peek() != "release":
            return {"hold_count": count}
        self.take()
        order = self.take()
        if order not in ORDERS:
            self.fail(f"no such order: {order}" if order else "an order is missing", f"one of: {', '.join(ORDERS)}")
        return {"hold_count": count, "order": order}

    def delay(self) -> dict[str, Any]:
        delay_ns = self.time_ns(self.take())
        if not self.peek().startswith("+-"):
            return {"delay_ns": delay_ns}
        word = self.take()
        self.word_at += 2
        return {"delay_ns": delay_ns, "jitter_ns": self.time_ns(word[2:])}

    def drop(self) -> dict[str, Any]:
        word = self.peek()
        if not word or word == "if" or word.startswith("@"):
            return {}
        return {"reason": str(self.number("a drop reason's number")) if word.isdecimal() else self.take()}

    def duplicate(self) -> dict[str, Any]:
        return {"copies": self.number("how many copies", MOST_COPIES)} if self.peek().isdecimal() else {}

    def edit(self) -> dict[str, Any]:
        changes = []
        for part in self.parts():
            found = CHANGE.match(part)
            if part == UNFIXED:
                self.fail(f"{UNFIXED} is a word of its own", f"edit ip.ttl=3 {UNFIXED}")
            if not found:
                self.fail(f"not a change: {part}" if part else "a change is missing", "edit ip.ttl=3,icmp.seq=7")
            name, quoted, plain = found.groups()
            value = plain or quoted
            self.check_change(name, value)
            changes.append((name, value))
        fix = self.peek() != UNFIXED
        if not fix:
            self.take()
        return {"changes": tuple(changes), "fix": fix}

    def check_change(self, name: str, value: str) -> None:
        """Check a change where it is typed. Scapy takes 0.5 s to import, and only rules that edit need it."""
        from skblab.edit import fault  # noqa: PLC0415

        found = fault(name, value)
        if found:
            at, error = found
            self.fail(": ".join(filter(None, (error.what, error.found))), error.hint, at=self.word_at + at)

    def parts(self) -> Iterator[str]:
        """Take what stands between commas, one after another."""
        self.peek()
        self.at = self.word_at - 1  # a comma, as it were
        while self.at == self.word_at - 1 or self.text[self.at : self.at + 1] == ",":
            self.word_at = self.at + 1
            part = PART.match(self.text, self.word_at)
            assert part
            self.at = part.end()
            if self.text[self.at : self.at + 1] == '"':
                self.fail("a quote is not closed", 'raw.load="a, b"; in quotes, \\" is one', at=self.at)
            yield part.group()


VERDICTS: dict[str, Callable[[_Parser], dict[str, Any]]] = {
    "accept": lambda _: {},
    "trace": lambda _: {},
    "hold": _Parser.hold,
    "delay": _Parser.delay,
    "drop": _Parser.drop,
    "duplicate": _Parser.duplicate,
    "edit": _Parser.edit,
    "stop": lambda _: {},
}
