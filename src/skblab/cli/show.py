"""``skblab show``: a trace file as a tree, a table, or JSON lines."""

import argparse
import json
import sys
from pathlib import Path

from skblab.cli.progress import working
from skblab.errors import UsageError
from skblab.trace.journey import Journey, journeys
from skblab.trace.model import Trace
from skblab.trace.reader import load

EXAMPLES = """\
examples:
  skblab show run.skblab                       each packet's journey, as an indented tree of calls with times
  skblab show run.skblab --packet 4            the journey of one packet
  skblab show run.skblab --table | less        one line per step
  skblab show run.skblab --json | jq 'select(.reason)'
"""
SHOWN = 20  # journeys, without --all and --packet


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        help="show a trace: as a tree, a table, or JSON lines",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a trace file (skblab trace -o)")
    how = add_output_options(parser)
    how.add_argument("--json", dest="how", action="store_const", const="json", help="print JSON lines")
    parser.set_defaults(run=run)


def add_output_options(parser: argparse.ArgumentParser) -> "argparse._MutuallyExclusiveGroup":
    """Add the options that say how a trace is shown; return the group of those that exclude one another."""
    group = parser.add_argument_group("how it is shown")
    how = group.add_mutually_exclusive_group()
    how.add_argument(
        "--tree", dest="how", action="store_const", const="tree", help="print the calls, indented (default)"
    )
    how.add_argument("--table", dest="how", action="store_const", const="table", help="print one line per step")
    group.add_argument("--packet", type=int, action="append", default=[], metavar="N", dest="packets",
                       help="print only the journeys of packet N; may be given several times")  # fmt: skip
    group.add_argument("--all", action="store_true",
                       help=f"print the journeys after the first {SHOWN}, too, "
                       "and those without a network packet")  # fmt: skip
    parser.set_defaults(how="tree")
    return how


def run(arguments: argparse.Namespace) -> int:
    """Show the file."""
    trace = read(arguments.file)
    found = find(trace) if arguments.packets or arguments.how != "json" else []
    if missing := _missing(found, arguments.packets):
        raise UsageError(f"{missing} in {arguments.file}", hint=f"skblab show {arguments.file}")
    show(trace, found, arguments)
    return 0


def read(path: Path) -> Trace:
    """Read a trace file, and say so where that takes long.

    :raises TraceError: the file cannot be read, is no trace, or is damaged
    """
    with working(f"reading {path}") as done:
        return load(path, done)


def find(trace: Trace) -> list[Journey]:
    """Return the journeys of a trace, and say so where that takes long."""
    with working("putting calls into one another"):
        return journeys(trace)


def _missing(found: list[Journey], wanted: list[int]) -> str:
    """Return which of the wanted packets are in none of the journeys, in words; "" if all are."""
    there = {number for one in found for number in one.packets}
    absent = [str(one) for one in wanted if one not in there]
    return f"there is no packet {', '.join(absent)}" if absent else ""


def show(trace: Trace, found: list[Journey], arguments: argparse.Namespace, printer: "Printer | None" = None) -> None:
    """Print a trace as the options say; print what is left out and what was lost to standard error.

    :param found: its journeys
    :param printer: has printed some of its journeys already
    """
    if arguments.how == "json":
        from skblab.view.lines import objects  # noqa: PLC0415

        wanted = {*arguments.packets}
        chosen = [one for one in found if one.packets.keys() & wanted]
        for one in objects(trace, chosen if wanted else None):
            print(json.dumps(one))
        return
    printer = printer or Printer(arguments)
    printer.print(trace, found)
    for line in filter(None, (*printer.left_out(found), _missing(found, arguments.packets))):
        print(line, file=sys.stderr)
    print(losses(trace), file=sys.stderr)


class Printer:
    """Prints journeys as the options say, each once, and as many as the options want."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._most = None if arguments.all or arguments.packets else SHOWN
        self._printed: set[int] = set()
        self._begin_ns = 0

    @property
    def has_enough(self) -> bool:
        """Whether no more will be printed."""
        return self._most is not None and len(self._printed) >= self._most

    def print(self, trace: Trace, found: list[Journey]) -> None:
        """Print the journeys that are wanted and have not been printed."""
        wanted = [one for one in found if one.first.number not in self._printed and self._wants(one)]
        if self._most is not None:
            wanted = wanted[: self._most - len(self._printed)]
        if wanted:
            self._table(trace, wanted) if self._arguments.how == "table" else self._tree(trace, wanted)
            sys.stdout.flush()
        self._printed.update(one.first.number for one in wanted)

    def left_out(self, found: list[Journey]) -> list[str]:
        """Return sentences that count the journeys of a whole trace that are not printed."""
        if self._most is None:
            return []
        ours = sum(map(self._wants, found))
        sentences = []
        if ours > self._most:
            sentences.append(f"{ours - self._most} more journeys: --all shows them, --packet N the one of a packet")
        if len(found) > ours:
            sentences.append(f"{len(found) - ours} journeys without a network packet: --all shows them")
        return sentences

    def _wants(self, journey: Journey) -> bool:
        if self._arguments.packets:
            return bool(journey.packets.keys() & {*self._arguments.packets})
        return self._arguments.all or journey.is_of_network

    def _table(self, trace: Trace, wanted: list[Journey]) -> None:
        from skblab.view.table import header, rows  # noqa: PLC0415

        steps = sorted((call.step for one in wanted for _, call in one.walk()), key=lambda step: step.at_ns)
        if not self._printed:
            print(header())
            self._begin_ns = steps[0].at_ns
        for line in rows(trace, steps, self._begin_ns):
            print(line)

    def _tree(self, trace: Trace, wanted: list[Journey]) -> None:
        from rich.console import Console  # noqa: PLC0415 - it takes a tenth of a second

        from skblab.view.tree import lines  # noqa: PLC0415

        console = Console(highlight=False)
        for number, journey in enumerate(wanted):
            if number or self._printed:
                console.print()
            for line in lines(trace, journey):
                console.print(line, soft_wrap=True)


def losses(trace: Trace) -> str:
    """Return what a trace has lost, in words."""
    if not trace.whole:
        return "the trace is not whole: its end was never written; what was written is shown"
    counts = f"events lost: {trace.end['lost']}"
    if trace.end["forgotten"]:
        counts += f", packets given up, because too many were followed: {trace.end['forgotten']}"
    if trace.end["unhooked"]:
        counts += f", calls whose return was not recorded: {trace.end['unhooked']}"
    return counts
