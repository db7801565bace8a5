"""What a rule may do with a packet: one row a verdict.

Grammar, help, ``skblab probes``, the table in docs/reference/rules.md and the agent's command come from these rows.
CONTRIBUTING.md says how to add one.
"""

import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from skblab.errors import RuleError
from skblab.line import MOST_NUMBER, Line, time_text

MOST_COPIES = 1000  # kernel/agent/agent_abi.h AGENT_MOST_COPIES
MOST_TIME_NS = 365 * 86400 * 1_000_000_000
MOST_CORRUPTED = 65535
MOST_BITS_PER_S = 10**15
RATE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)(k|m|g)?bit")  # as tc(8) writes it
RATE_UNITS = {"g": 10**9, "m": 10**6, "k": 10**3, "": 1}
ORDERS = ("fifo", "reverse", "random")
PART = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^,\s"])*')  # a comma or a blank in quotes belongs to its part
CHANGE = re.compile(r'([A-Za-z0-9_]+(?::[0-9]{1,2})?\.[A-Za-z0-9_]+)=(?:"((?:\\.|[^"\\])*)"|([^,\s"]+))$')
UNQUOTED = re.compile(r'[^,\s"#]+')
UNFIXED = "fix=False"
RETURN, STOP = "return", "stop"
NUMBER = re.compile(r"-?(?:0x[0-9a-fA-F]{1,16}|0|[1-9][0-9]{0,19})")
NAMED = {"NULL": 0, "false": 0, "true": 1}
OF_KERNEL = {"ERESTARTSYS": 512, "EPROBE_DEFER": 517, "ENOTSUPP": 524}  # include/linux/errno.h
VALUES = "-ENOMEM, 0, -1, 0x10, NULL, true"


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What may stand behind a verdict's word. Each verdict reads its own fields; the others keep their defaults."""

    hold_count: int = 0
    order: str = "fifo"
    delay_ns: int = 0
    jitter_ns: int = 0
    reason: str = ""
    copies: int = 1
    changes: tuple[tuple[str, str], ...] = ()
    fix: bool = True
    corrupted_bytes: int = 1
    bits_per_s: int = 0
    value: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.hold_count <= MOST_NUMBER:
            raise RuleError(f"{self.hold_count} packets to hold", hint=f"up to {MOST_NUMBER}; 0: all")
        if not 1 <= self.copies <= MOST_COPIES:
            raise RuleError(f"{self.copies} copies", hint=f"1 to {MOST_COPIES}")
        if not all(0 <= one <= MOST_TIME_NS for one in (self.delay_ns, self.jitter_ns)):
            raise RuleError(f"a delay of {self.delay_ns} ns +- {self.jitter_ns} ns", hint="at most 365 days")
        if not 1 <= self.corrupted_bytes <= MOST_CORRUPTED or not 0 <= self.bits_per_s <= MOST_BITS_PER_S:
            raise RuleError(f"{self.corrupted_bytes} bytes, {self.bits_per_s} bit/s", hint="see skblab run --help")
        if self.value and number_of(self.value) is None:
            raise RuleError(f"not a value: {self.value}", hint=VALUES)


@dataclass(frozen=True)
class Numbers:
    """A verdict's arguments as the agent gets them (kernel/agent/agent_abi.h struct agent_arm)."""

    delay_ns: int = 0
    jitter_ns: int = 0
    argument: int = 0


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """One verdict.

    :param word: its name in a rule
    :param grammar: its arguments, as help and docs show them
    :param help: what happens to the packet
    :param example: the word with the arguments that it needs
    :param number: enum agent_verdict in kernel/agent/verdict.c: what the agent does
    :param any_function: the function need have no packet
    :param owns: sound only at a function that owns its packet (skblab.agent.functions)
    :param needs: who decides on each packet: the agent alone, the host within a lease, or gdb
    :param changes_bytes: the host writes other bytes, and the packet goes on
    :param whole: a hit carries the whole packet, not only its first bytes
    :param stack: a hit carries the return addresses on the stack
    :param read: reads the arguments from a rule's line
    :param write: returns the arguments as a rule's words
    :param numbers: returns the arguments as the agent gets them
    """

    word: str
    grammar: str = ""
    help: str
    example: str
    number: int
    any_function: bool = False
    owns: bool = False
    needs: Literal["agent", "host", "gdb"] = "agent"
    whole: bool = False
    changes_bytes: bool = False
    stack: bool = False
    read: Callable[[Line], dict[str, Any]] = lambda _: {}
    write: Callable[[Arguments], list[str]] = lambda _: []
    numbers: Callable[[Arguments], Numbers] = lambda _: Numbers()

    @property
    def usage(self) -> str:
        """The word with its grammar: ``delay TIME [+-JITTER]``."""
        return f"{self.word} {self.grammar}".rstrip()


def _read_hold(line: Line) -> dict[str, Any]:
    count = line.number("how many to hold") if line.peek().isdecimal() else 0
    if not line.take_if("release"):
        return {"hold_count": count}
    order = line.take()
    if order not in ORDERS:
        line.fail(f"no such order: {order}" if order else "an order is missing", f"one of: {', '.join(ORDERS)}")
    return {"hold_count": count, "order": order}


def _write_hold(given: Arguments) -> list[str]:
    return [str(given.hold_count or ""), *(["release", given.order] if given.order != "fifo" else [])]


def _read_delay(line: Line) -> dict[str, Any]:
    delay_ns = line.time_ns(MOST_TIME_NS)
    jitter_ns = line.time_ns(MOST_TIME_NS, behind="+-") if line.peek().startswith("+-") else 0
    return {"delay_ns": delay_ns, "jitter_ns": jitter_ns}


def _write_delay(given: Arguments) -> list[str]:
    return [time_text(given.delay_ns), *([f"+-{time_text(given.jitter_ns)}"] if given.jitter_ns else [])]


def _ends_here(word: str) -> bool:
    """Whether a verdict has no argument: an occurrence or a filter follows, or nothing."""
    return not word or word == "if" or word.startswith("@")


def _read_drop(line: Line) -> dict[str, Any]:
    if _ends_here(word := line.peek()):
        return {}
    return {"reason": str(line.number("a drop reason's number")) if word.isdecimal() else line.take()}


def _read_duplicate(line: Line) -> dict[str, Any]:
    return {"copies": line.number("how many copies", MOST_COPIES)} if line.peek().isdecimal() else {}


def _read_edit(line: Line) -> dict[str, Any]:
    changes = []
    for part in _parts(line):
        found = CHANGE.match(part)
        if part == UNFIXED:
            line.fail(f"{UNFIXED} is a word of its own", f"edit ip.ttl=3 {UNFIXED}")
        if not found:
            line.fail(f"not a change: {part}" if part else "a change is missing", "edit ip.ttl=3,icmp.seq=7")
        name, quoted, plain = found.groups()
        value = plain or quoted
        _check_change(line, name, value)
        changes.append((name, value))
    return {"changes": tuple(changes), "fix": not line.take_if(UNFIXED)}


def _parts(line: Line) -> Iterator[str]:
    """Take what stands between commas, one after another."""
    line.peek()
    line.at = line.word_at - 1  # as if a comma stood before the first part
    while line.at == line.word_at - 1 or line.text[line.at : line.at + 1] == ",":
        line.word_at = line.at + 1
        part = PART.match(line.text, line.word_at)
        assert part
        line.at = part.end()
        if line.text[line.at : line.at + 1] == '"':
            line.fail("a quote is not closed", 'raw.load="a, b"; in quotes, \\" is one', at=line.at)
        yield part.group()


def _check_change(line: Line, name: str, value: str) -> None:
    from skblab.edit import fault  # noqa: PLC0415 - scapy takes 0.4 s to import, and only rules that edit need it

    if found := fault(name, value):
        at, error = found
        line.fail(": ".join(filter(None, (error.what, error.found))), error.hint, at=line.word_at + at)


def _write_edit(given: Arguments) -> list[str]:
    changes = ",".join(f"{name}={_quoted(value)}" for name, value in given.changes)
    return [changes, "" if given.fix else UNFIXED]


def _quoted(value: str) -> str:
    """Return an edit's value as a rule writes it: in quotes where it would end before."""
    if UNQUOTED.fullmatch(value):
        return value
    escaped = re.sub(r'\\.|"', lambda found: found[0] if len(found[0]) > 1 else '\\"', value, flags=re.DOTALL)
    return f'"{escaped}"'


def _read_corrupt(line: Line) -> dict[str, Any]:
    return {"corrupted_bytes": line.number("how many bytes", MOST_CORRUPTED)} if line.peek().isdecimal() else {}


def _read_rate(line: Line) -> dict[str, Any]:
    word = line.take()
    found = RATE.fullmatch(word)
    bits_per_s = round(float(found[1]) * RATE_UNITS[found[2] or ""]) if found else 0
    if not 1 <= bits_per_s <= MOST_BITS_PER_S:
        line.fail(f"not a rate: {word}" if word else "a rate is missing", "64kbit, 1.5mbit, 1gbit")
    return {"bits_per_s": bits_per_s}


def _write_rate(given: Arguments) -> list[str]:
    unit = next(unit for unit, size in RATE_UNITS.items() if given.bits_per_s % size == 0)
    return [f"{given.bits_per_s // RATE_UNITS[unit]}{unit}bit"]


def number_of(value: str) -> int | None:
    """Return a return value's number; it is written as in C. None: it is not a value."""
    if value in NAMED:
        return NAMED[value]
    if value.startswith("-E") and (number := OF_KERNEL.get(value[1:]) or getattr(errno, value[1:], None)):
        return -int(number)
    found = int(value, 0) if NUMBER.fullmatch(value) else None
    return found if found is not None and -(1 << 63) <= found < 1 << 64 else None


def _read_return(line: Line) -> dict[str, Any]:
    if _ends_here(word := line.peek()):
        return {}
    if number_of(word) is None:
        line.fail(f"not a value: {word}", VALUES)
    return {"value": line.take()}


def _as_signed(number: int) -> int:
    """Return a number of 64 bits as the agent gets it."""
    return number - (1 << 64) if number >= 1 << 63 else number


ROWS = (
    Verdict(
        word="accept",
        help="it goes on; later rules at this function do not see it",
        example="accept",
        number=0,
        any_function=True,
    ),
    Verdict(word="trace", help="it goes on, and is reported", example="trace", number=1, any_function=True),
    Verdict(
        word="hold",
        grammar="[N] [release fifo|reverse|random]",
        help="it is held until it is released, or until N packets are held",
        example="hold",
        number=2,
        owns=True,
        needs="host",
        whole=True,
        stack=True,
        read=_read_hold,
        write=_write_hold,
    ),
    Verdict(
        word="delay",
        grammar="TIME [+-JITTER]",
        help="it is held for that time: 300ms, 1.5s, 20us",
        example="delay 300ms",
        number=2,
        owns=True,
        read=_read_delay,
        write=_write_delay,
        numbers=lambda given: Numbers(max(given.delay_ns, 1), given.jitter_ns),  # 0 would hold it until released
    ),
    Verdict(
        word="drop",
        grammar="[REASON]",
        help="it is freed with a drop reason of the kernel's: NO_SOCKET, or its number",
        example="drop",
        number=3,
        owns=True,
        read=_read_drop,
        write=lambda given: [given.reason],
    ),
    Verdict(
        word="duplicate",
        grammar="[N]",
        help="the function runs for N copies (default: 1) before it runs for the packet",
        example="duplicate",
        number=4,
        owns=True,
        read=_read_duplicate,
        write=lambda given: [str(given.copies)] if given.copies != 1 else [],
        numbers=lambda given: Numbers(argument=given.copies),
    ),
    Verdict(
        word="edit",
        grammar="FIELD=VALUE[,...] [fix=False]",
        help="it goes on with other bytes: ip.ttl=3,icmp.seq=7",
        example="edit ip.ttl=3",
        number=2,  # the host changes it while it is held, and releases it
        owns=True,
        needs="host",
        whole=True,
        changes_bytes=True,
        read=_read_edit,
        write=_write_edit,
    ),
    Verdict(
        word="corrupt",
        grammar="[N]",
        help="it goes on with N bytes (default: 1) of its payload changed; its checksum is not",
        example="corrupt",
        number=2,
        owns=True,
        needs="host",
        whole=True,
        changes_bytes=True,
        read=_read_corrupt,
        write=lambda given: [str(given.corrupted_bytes)] if given.corrupted_bytes != 1 else [],
    ),
    Verdict(
        word="reset",
        help="it becomes a TCP RST for its receiver; the sender gets one in answer to its next segment",
        example="reset",
        number=2,
        owns=True,
        needs="host",
        whole=True,
        changes_bytes=True,
        read=lambda _: {"changes": (("tcp.flags", "R"),)},
    ),
    Verdict(
        word="rate",
        grammar="RATE",
        help="it is held until the packets before have passed at that rate: 1mbit",
        example="rate 1mbit",
        number=2,
        owns=True,
        read=_read_rate,
        write=_write_rate,
        numbers=lambda given: Numbers(argument=given.bits_per_s),
    ),
    Verdict(
        word=RETURN,
        grammar="[VALUE]",
        help="the function does not run, its caller gets the value: -ENOMEM, 0, NULL, true",
        example="return 0",
        number=6,
        any_function=True,
        read=_read_return,
        write=lambda given: [given.value],
        numbers=lambda given: Numbers(argument=_as_signed(number_of(given.value) or 0)),
    ),
    Verdict(word=STOP, help="the whole kernel stops under gdb", example="stop", number=5, needs="gdb"),
)
VERDICTS = {row.word: row for row in ROWS}


def table() -> str:
    """Return the verdicts for a help text, a line each."""
    width = max(len(row.usage) for row in ROWS)
    return "\n".join(f"  {row.usage:{width}}  {row.help}" for row in ROWS)
