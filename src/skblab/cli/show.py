"""``skblab show``: a trace file as a tree, a table, or JSON lines."""

import argparse
import json
import sys
from pathlib import Path

from skblab.record.journey import Journey, journeys
from skblab.record.steps import Trace, load

EXAMPLES = """\
examples:
  skblab show run.skblab                       each packet's way, as an indented tree of calls with times
  skblab show run.skblab --packet 4            one packet, and what came of it
  skblab show run.skblab --table | less        a line a step
  skblab show run.skblab --json | jq 'select(.reason)'
"""
SHOWN = 20  # journeys, where it is not said how many


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "show",
        help="show a trace: as a tree, a table, or JSON lines",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what skblab trace -o has written")
    add_output_options(parser)
    parser.set_defaults(run=run)


def add_output_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how a trace is shown."""
    group = parser.add_argument_group("how it is shown")
    how = group.add_mutually_exclusive_group()
    how.add_argument("--tree", dest="how", action="store_const", const="tree", help="calls, indented (default)")
    how.add_argument("--table", dest="how", action="store_const", const="table", help="a line a step")
    how.add_argument("--json", dest="how", action="store_const", const="json", help="JSON lines")
    group.add_argument("--packet", type=int, action="append", default=[], metavar="N", dest="packets",
                       help="only the journeys of packet N")  # fmt: skip
    group.add_argument("--all", action="store_true",
                       help=f"more than the first {SHOWN} journeys, and what is no packet of a network")  # fmt: skip
    parser.set_defaults(how="tree")


def run(arguments: argparse.Namespace) -> int:
    """Show the file."""
    show(load(arguments.file), arguments)
    return 0


def show(trace: Trace, arguments: argparse.Namespace) -> None:
    """Print a trace as the options say; what is left out, and what was lost, goes to standard error."""
    from rich.console import Console  # noqa: PLC0415 - it takes a tenth of a second

    if arguments.how == "json":
        from skblab.record.table import objects  # noqa: PLC0415

        for one in objects(trace):
            print(json.dumps(one))
        return
    found = journeys(trace)
    shown, left_out = choose(found, arguments)
    if arguments.how == "table":
        from skblab.record.table import rows  # noqa: PLC0415

        steps = sorted((call.step for one in shown for _, call in one.walk()), key=lambda step: step.at_ns)
        for line in rows(trace, steps):
            print(line)
    else:
        from skblab.record.story import tell  # noqa: PLC0415

        tell(Console(highlight=False), trace, shown)
    for line in left_out:
        print(line, file=sys.stderr)
    print(losses(trace), file=sys.stderr)


def choose(found: list[Journey], arguments: argparse.Namespace) -> tuple[list[Journey], list[str]]:
    """Return the journeys that are to be shown, and what is to be said of the others."""
    if arguments.packets:
        return [one for one in found if one.packets.keys() & {*arguments.packets}], []
    if arguments.all:
        return found, []
    ours = [one for one in found if one.is_of_network]
    said = []
    if len(ours) > SHOWN:
        said.append(f"{len(ours) - SHOWN} more journeys: --all shows them, --packet N the one of a packet")
    if len(found) > len(ours):
        said.append(f"{len(found) - len(ours)} that are no packets of a network: --all shows them")
    return ours[:SHOWN], said


def losses(trace: Trace) -> str:
    """Return what was lost, in words."""
    if not trace.whole:
        return "the trace is not whole: whoever wrote it was killed; what it had written is shown"
    said = f"lost: {trace.end['lost']}"
    if trace.end["forgotten"]:
        said += f", packets that were followed no more: {trace.end['forgotten']}"
    if trace.end["unhooked"]:
        said += f", returns that were not waited for: {trace.end['unhooked']}"
    return said
