"""The command line's parser: it takes no abbreviations, and gives a hint for an unknown word."""

import argparse
import difflib
import shlex
import shutil
from collections.abc import Sequence
from typing import Any, NoReturn

WITH_CLIENT = ("run", "hold", "trace", "gdb", "exec", "sweep", "explore")
WITH_FILTER = "trace"
WITH_WORD = ("gdb", "trace")  # before the --: a lab's name, or a filter


class Parser(argparse.ArgumentParser):
    """A parser that stores itself in ``arguments.parser``: an error then shows the usage of its command."""

    def __init__(self, **how: Any) -> None:  # noqa: ANN401 - argparse's own
        super().__init__(allow_abbrev=False, **how)
        self.set_defaults(parser=self)

    def refuse(self, rest: Sequence[str], words: Sequence[str], arguments: argparse.Namespace) -> NoReturn:
        """Exit with an error for *rest*, those of *words* that no argument takes."""
        message = f"unrecognized arguments: {shlex.join(rest)}"
        hint = self._near(rest[0]) or self._hint(rest, words, arguments)
        self.error(f"{message}\n  {hint}" if hint else message)

    def _near(self, word: str) -> str:
        if not word.startswith("--"):
            return ""
        options = [one for action in self._actions for one in action.option_strings]
        begun = [one for one in options if one.startswith(word.partition("=")[0])]
        near = begun or difflib.get_close_matches(word, options)
        return f"near: {', '.join(near)}" if near else ""

    def _hint(self, rest: Sequence[str], words: Sequence[str], arguments: argparse.Namespace) -> str:
        """Return a hint at a missing ``--`` before a command, or missing quotes around a filter; else ""."""
        command = self.prog.split()[-1]
        if command not in WITH_CLIENT:
            return ""
        typed = [str(word) for word in getattr(arguments, "command", ()) or ()]
        first = typed[0] if typed else next((one for one in (_positional(arguments), *rest) if shutil.which(one)), "")
        if first in words and (typed or not arguments.client):
            at = words.index(first)
            return f"hint: the command goes after --: skblab {shlex.join(words[:at])} -- {shlex.join(words[at:])}"
        if command == WITH_FILTER and not rest[0].startswith("-"):
            return f"hint: a filter of several words goes in quotes: {shlex.quote(' '.join((arguments.filter, *rest)))}"
        return ""


def _positional(arguments: argparse.Namespace) -> str:
    """Return the word that was taken for a filter or a lab's name."""
    return getattr(arguments, "filter", "") or getattr(arguments, "lab", "") or ""
