"""Conditions on members of a packet's struct sk_buff, the end of a filter: ``icmp where skb->mark == 7``.

FILTER = PCAP | CONDITIONS | PCAP where CONDITIONS
CONDITIONS = CONDITION [and CONDITION]...
CONDITION = skb->MEMBER[->MEMBER]... (== | != | < | <= | > | >= | &) (NUMBER | "TEXT")
"""

import re
from dataclasses import dataclass

from skblab.errors import RuleError
from skblab.line import Line

WHERE = re.compile(r"(?:^|\s)where(?:\s|$)")
FIELD = re.compile(r"\s*(skb(?:\s*(?:->|\.)\s*[A-Za-z_]\w*)+)")
OPERATION = re.compile(r"\s*(==|!=|<=|>=|<|>|&)")
VALUE = re.compile(r'\s*(?:"([^"]*)"|([^\s"]+))')
EQUALITIES = ("==", "!=")
MOST = 16  # kernel/agent/agent_abi.h AGENT_CONDITIONS
MOST_TEXT_BYTES = 31
NUMBERS = range(-(1 << 63), 1 << 64)


@dataclass(frozen=True)
class Condition:
    """What one member must be.

    :param field: the member as C names it: ``skb->dev->name``
    :param operation: ``==``, ``!=``, ``<``, ``<=``, ``>``, ``>=``, or ``&``: any of these bits is set
    :param value: a number, or text
    """

    field: str
    operation: str
    value: int | str


def split(expression: str) -> tuple[str, str]:
    """Return the two parts of a filter, what libpcap compiles and the conditions; either may be ""."""
    if FIELD.match(expression):
        return "", expression.strip()
    found = WHERE.search(expression)
    return (expression[: found.start()].strip(), expression[found.end() :].strip()) if found else (expression, "")


def conditions(expression: str) -> list[Condition]:
    """Return the conditions of a filter.

    :raises RuleError: with a caret under the fault
    """
    pcap, text = split(expression)
    if not text:
        if pcap != expression:
            raise RuleError("a condition is missing after where", found=expression, hint="where skb->mark == 7")
        return []
    line, found = Line(text), []
    while True:
        found.append(_read(line))
        if not line.peek():
            break
        if not line.take_if("and"):
            line.fail(f"not understood here: {line.peek()}", "conditions are joined by: and")
    if len(found) > MOST:
        raise RuleError(f"{len(found)} conditions are too many", found=f"{MOST} at most")
    return found


def _read(line: Line) -> Condition:
    field = _next(line, FIELD, "a member of the packet's struct sk_buff is missing", "skb->mark, skb->dev->name")
    operation = _next(line, OPERATION, "a comparison is missing", "==, !=, <, <=, >, >= or & (any of these bits)")
    found = VALUE.match(line.text, line.at)
    line.peek()
    if not found:
        line.fail("a value is missing", 'a number, or "text"')
    line.at = found.end()
    text, word = found.groups()
    return Condition(
        re.sub(r"\s", "", field), operation, _number(line, word) if text is None else _text(line, text, operation)
    )


def _next(line: Line, wanted: re.Pattern[str], what: str, hint: str) -> str:
    line.peek()
    found = wanted.match(line.text, line.at)
    if not found:
        line.fail(what, hint)
    line.at = found.end()
    return found.group(1)


def _number(line: Line, word: str) -> int:
    try:
        number = int(word, 0)
    except ValueError:
        line.fail(f"not a number: {word}", '7, 0x7 or -7; text has quotation marks: "vec0"')
    if number not in NUMBERS:
        line.fail(f"too large: {word}", "64 bits")
    return number


def _text(line: Line, text: str, operation: str) -> str:
    if operation not in EQUALITIES:
        line.fail(f"text is compared by == and != alone, not by {operation}")
    if len(text.encode()) > MOST_TEXT_BYTES:
        line.fail("too long", f"{MOST_TEXT_BYTES} bytes at most")
    return text
