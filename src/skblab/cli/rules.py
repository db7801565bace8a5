"""Rules on the command line: one by one, or a line each in a file; in force while a command runs."""

import argparse
import codecs
import contextlib
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.cli import stops
from skblab.errors import RuleError, UsageError
from skblab.host import process
from skblab.rule import Rule

if TYPE_CHECKING:
    from skblab.agent.abi import Hit
    from skblab.agent.streams import Running
    from skblab.debugger.session import Debugger
    from skblab.lab import Lab
    from skblab.packet import Packet

UTF_16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
RULE = re.compile(r'(?:"(?:\\.|[^"\\])*"|[^#])*')  # up to a comment; in quotes, # begins none
Teller = Callable[[Rule], "Callable[[Hit, Packet, str], None]"]
"""Returns what is to be called for each packet of a rule."""


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


class InForce:
    """Rules that are in force, and gdb where one of them stops the kernel."""

    def __init__(self, lab: "Lab", running: "list[Running]", debugger: "Debugger | None") -> None:
        self.running = running
        self.debugger = debugger
        self._lab = lab

    def run(self, command: Sequence[str]) -> int:
        """Run a command on the host side to its end; return its status, as the shell has it not yet.

        Without one, wait for a Ctrl-C.

        :raises GuestLost: the guest kernel was gone before
        """
        stdin = subprocess.DEVNULL if self.debugger else None
        client = self._lab.popen(command, stdin=stdin) if command else None
        try:
            status = stops.wait(client, self._lab.guest, self.debugger, sys.stderr, self._stopped)
        except KeyboardInterrupt:
            if client:
                raise
            print(file=sys.stderr)  # behind ^C
            status = 0
        self._lab.check()
        return status

    def exit_status(self, status: int) -> int:
        """Return the status to exit with: the command's, as a shell has it, or 1 where that is 0 and an edit failed."""
        return process.exit_status(status) or int(any(one.unedited for one in self.running))

    def _stopped(self) -> int:
        return sum(one.counts.stopped for one in self.running)

    def close(self) -> None:
        """Take them away, the last one first. Safe to call twice."""
        if self.debugger:
            self.debugger.close()
        for one in reversed(self.running):
            one.close()


@contextlib.contextmanager
def in_force(lab: "Lab", rules: Sequence[Rule], teller: Teller = lambda _: lambda *_: None) -> Iterator[InForce]:
    """Put rules in force, and attach gdb if one of them wants it."""
    with contextlib.ExitStack() as stack:
        running = []
        for rule in rules:
            running.append(lab.rule(rule, teller(rule)))
            stack.callback(running[-1].close)
        debugger = None
        if any(rule.verdict == "stop" for rule in rules):
            debugger = stack.enter_context(lab.debugger())
            lab.stop_on_rules(debugger)
            debugger.resume()
        yield InForce(lab, running, debugger)
