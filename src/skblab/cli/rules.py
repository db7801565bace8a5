"""Rules on the command line: one by one, or in a file, one a line."""

import argparse
import codecs
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.errors import UNFIRED, RuleError, UsageError
from skblab.rule import Rule

if TYPE_CHECKING:
    from skblab.session import Outcome

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
RULE = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^#])*')  # up to a comment; a # in quotes is text


def add_rule_options(
    parser: argparse.ArgumentParser,
    help: str,  # noqa: A002
    *,
    lease_s: float = 60.0,  # agent.control.DEFAULT_LEASE_S: to import it would make every command's start slower
) -> None:
    """Add the options for rules, and for the lease of held packets; *lease_s* is its default."""
    parser.add_argument("-r", "--rule", action="append", default=[], metavar="RULE", dest="rules", help=help)
    parser.add_argument("-f", "--rules", action="append", default=[], type=Path, metavar="FILE", dest="rule_files",
                        help="a file of rules, one a line, which follow those of -r; # begins a comment; "
                        "may be given several times")  # fmt: skip
    parser.add_argument("--lease", type=float, default=lease_s, metavar="SECONDS",
                        help="release a held packet after this time if nothing has decided on it; "
                        "0: never (default: %(default)g)")  # fmt: skip


def add_allow_unfired(parser: argparse.ArgumentParser) -> None:
    """Add the option that lets a run be good although a rule never fired."""
    parser.add_argument("--allow-unfired", action="store_true",
                        help=f"do not exit with status {UNFIRED} if a rule never fired")  # fmt: skip


def status_of(outcome: "Outcome", arguments: argparse.Namespace) -> int:
    """Return the status to exit with: UNFIRED where a rule never fired, whatever the command's own."""
    return UNFIRED if outcome.unfired and not arguments.allow_unfired else outcome.exit_status


def rules_from(arguments: argparse.Namespace, parse: Callable[[str], Rule] = Rule.parse) -> list[Rule]:
    """Return the rules that the options give.

    :raises UsageError: a file cannot be read
    :raises RuleError: a rule cannot be parsed; for a rule in a file, the error has the line
    """
    rules = [parse(text) for text in arguments.rules]
    for path in arguments.rule_files:
        for number, line in enumerate(_text_of(path).splitlines(), 1):
            found = RULE.match(line)
            text = found.group().strip() if found else ""
            try:
                rules += [parse(text)] if text else []
            except RuleError as error:
                error.what = f"{path}:{number}: {error.what}"
                raise
    return rules


def _text_of(path: Path) -> str:
    """Return the text of a file in UTF-8, with or without a byte order mark.

    :raises UsageError: the file cannot be read, or has another encoding
    """
    try:
        data = path.read_bytes()
        if data.startswith(UTF_16) or b"\0" in data:
            raise UsageError(
                f"cannot read the rules in {path}", found="it is UTF-16, or no text",
                hint=f"iconv -f UTF-16 -t UTF-8 {path}",
            )  # fmt: skip
        return data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the rules in {path}", found=str(error)) from None
