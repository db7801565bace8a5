"""``skblab hold``: packets held inside the running kernel, on a screen; a person decides about each."""

import argparse
import contextlib
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from skblab.cli import saving
from skblab.cli.options import add_guest_options, add_lab_options, lab_from
from skblab.cli.rules import add_rule_options, rules_from
from skblab.errors import UsageError
from skblab.rule import Rule

if TYPE_CHECKING:
    from pathlib import Path

    from skblab.lab import Lab

DEFAULT_RULE = "icmp_rcv"
EXAMPLES = """\
examples:
  skblab hold -- ping guest
  skblab hold -r icmp_rcv -r 'ip_output if icmp' -- ping -i0.5 guest
  skblab hold -r 'tcp_v4_rcv if tcp[tcpflags] & tcp-syn != 0' \\
              --root host -g 'python3 -m http.server 80' -- curl -s http://guest/
  skblab hold --save hand.toml -- ping guest; skblab replay hand.toml
  skblab hold --save test_hand.py -- ping guest; pytest test_hand.py

a rule is FUNCTION [= hold] [@OCCURRENCE] [if FILTER]; rules with other verdicts (skblab run --help) work beside it

keys:
  r release   R release all   v release all in reverse   a release after a time
  x drop      d duplicate     e edit     u undo its edits      m mark     s save to a pcap file
  z stop the whole kernel under gdb, at the packet's function
  t the backtrace, with source     f hold only packets that match a filter
  ctrl+p all commands               q release everything and leave
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "hold",
        help="hold packets at any function on a screen while a command runs, and decide about each",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_rule_options(parser, f"a rule: what to hold (default: {DEFAULT_RULE}); may be given several times", lease_s=0.0)
    saving.add_save_option(parser)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run on the host side, after --")
    add_lab_options(parser)
    add_guest_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show the screen; return the client's status if it ended, else 0, or the status of what ended the screen."""
    saving.check(arguments)
    rules = saving.pinned(rules_from(arguments, Rule.parse_hold), arguments) or [Rule.parse_hold(DEFAULT_RULE)]
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        words = shlex.join(word for rule in rules for word in ("-r", str(rule)))
        raise UsageError(
            "skblab hold needs a terminal for its screen",
            hint=f"skblab run {words} -- {shlex.join(arguments.command)}",
        )
    return show(lab_from(arguments), rules, arguments.command, arguments.save)


def show(lab: "Lab", rules: Sequence[Rule], command: Sequence[str], save: "Path | None" = None) -> int:
    """Show the packets that rules hold while a command runs in a lab; return the exit status.

    :param save: a new file for what was decided
    """
    from skblab.tui.app import HoldApp  # noqa: PLC0415 - the screen takes 0.4 s to import
    from skblab.tui.model import HeldPackets  # noqa: PLC0415

    if lab.spec.time == "virtual":
        raise _in_virtual_time()
    with lab:
        if lab.guest.clock.is_virtual:  # one that was joined
            raise _in_virtual_time()
        with contextlib.closing(HeldPackets(lab, rules)) as held:
            running = held.running
            app = HoldApp(lab, held, command)
            try:
                status = app.run()
            finally:
                app.stop_reading()
        if save and hasattr(app, "client"):
            from skblab.tui.saving import saved  # noqa: PLC0415 - as above

            saved(app).write(save)
            saving.tell(save)
        if app.lost:
            raise app.lost
        if app.client.last_words:
            print("\n".join(app.client.last_words).strip("\n"))
        for one in running:
            counts = ", ".join(f"{name} {count}" for name, count in asdict(one.counts).items()
                               if count and name != "verdicts")  # fmt: skip
            print(f"{one.armed.rule}: {counts or 'arrived 0'}", *one.counts.caveats, sep="\n  ")
        print(f"events lost: {held.lost}")
    return app.return_code or 0 if status is None else status


def _in_virtual_time() -> UsageError:
    return UsageError("the screen is for a person, in real time", hint="without --time virtual; or skblab run")
