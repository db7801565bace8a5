"""One line of text, read word by word; a fault gets a caret below its place."""

import re
from typing import NoReturn

from skblab.errors import RuleError

MOST_NUMBER = (1 << 31) - 1
UNITS_NS = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
WORD = re.compile(r"\s*(\S+)")
TIME = re.compile(r"([0-9]+(?:\.[0-9]+)?)(ns|us|ms|s)")


class Line:
    """A line, and how far it has been read: ``at`` is behind the last word, ``word_at`` where it begins.

    Its ``text`` may be cut off at the end; errors show all of it.
    """

    def __init__(self, text: str) -> None:
        self.text = self.whole = text
        self.at = 0
        self.word_at = 0

    def fail(self, what: str, hint: str = "", *, at: int | None = None) -> NoReturn:
        """Raise RuleError with a caret at *at*, by default at the last word."""
        place = self.word_at if at is None else at
        raise RuleError(what, found=f"{self.whole}\n{' ' * place}^", hint=hint)

    def peek(self) -> str:
        """Return the next word, or "" at the end."""
        found = WORD.match(self.text, self.at)
        self.word_at = found.start(1) if found else len(self.text)
        return found.group(1) if found else ""

    def take(self) -> str:
        """Return the next word and go behind it."""
        word = self.peek()
        self.at = self.word_at + len(word)
        return word

    def take_if(self, word: str) -> bool:
        """Go behind the next word if it is *word*; return whether it is."""
        if self.peek() != word:
            return False
        self.take()
        return True

    def number(self, what: str, most: int = MOST_NUMBER) -> int:
        """Take a whole number from 1 to *most*."""
        word = self.take()
        if not word.isdecimal() or len(word) > len(str(MOST_NUMBER)) or not 0 < int(word) <= most:
            self.fail(f"{what}, not {word!r}" if word else f"{what}?", f"1 to {most}" if word else "")
        return int(word)

    def time_ns(self, most_ns: int, *, behind: str = "") -> int:
        """Take a time with its unit, behind a prefix: 300ms, +-20us."""
        word = self.take().removeprefix(behind)
        self.word_at += len(behind)
        found = TIME.fullmatch(word)
        if not found:
            self.fail(f"not a time: {word}" if word else "a time is missing", "300ms, 1.5s, 20us")
        time_ns = float(found.group(1)) * UNITS_NS[found.group(2)]
        if time_ns > most_ns:
            self.fail(f"too long: {word}", f"at most {most_ns // (86400 * UNITS_NS['s'])} days")
        return round(time_ns)


def time_text(ns: int) -> str:
    """Return a time in its largest whole unit."""
    for unit in ("s", "ms", "us"):
        if ns and ns % UNITS_NS[unit] == 0:
            return f"{ns // UNITS_NS[unit]}{unit}"
    return f"{ns}ns"
