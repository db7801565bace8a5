"""Rules on the command line: one by one, or a line each in a file."""

import argparse
import codecs
import re
from collections.abc import Callable
from pathlib import Path

from skblab.errors import RuleError, UsageError
from skblab.rule import Rule

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
RULE = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^#])*')  # up to a comment; in quotes, # begins none


def add_rule_options(
    parser: argparse.ArgumentParser,
    help: str,  # noqa: A002
    *,
    lease_s: float = 60.0,  # agent.control.DEFAULT_LEASE_S: to import it would make every command's start slower
) -> None:
    """Add the options that give rules, and the *lease_s* of what they hold."""
    parser.add_argument("-r", "--rule", action="append", default=[], metavar="RULE", dest="rules", help=help)
    parser.add_argument("-f", "--rules", action="append", default=[], type=Path, metavar="FILE", dest="rule_files",
                        help="rules from a file, one a line, behind those of -r; # begins a comment")  # fmt: skip
    parser.add_argument("--lease", type=float, default=lease_s, metavar="SECONDS",
                        help="a held packet goes on by itself if nothing has decided on it after that time; "
                        "0: never (default: %(default)g)")  # fmt: skip


def rules_from(arguments: argparse.Namespace, parse: Callable[[str], Rule] = Rule.parse) -> list[Rule]:
    """Return the rules that the options give.

    :raises UsageError: a file cannot be read
    :raises RuleError: one cannot be parsed; of a file, with its line
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
    """Return a file's text, whatever editor has written it: UTF-8, with or without a byte order mark.

    :raises UsageError: it cannot be read, or is of another encoding
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
