"""``skblab diff``: the functions that a packet entered in one trace, and its like in another trace did not."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from skblab.cli.show import find, losses, read
from skblab.errors import UsageError
from skblab.trace.journey import Journey
from skblab.trace.model import Trace
from skblab.view.diff import Line, alike, compare, differ, hunks, kind

EXAMPLES = """\
examples:
  skblab trace -o old.skblab icmp -- ping -c1 guest
  skblab trace --series 6.1 -o new.skblab icmp -- ping -c1 guest
  skblab diff old.skblab new.skblab            A's first packet, and B's first one of its kind
  skblab diff A B --packet 4 --packet 7        A's packet 4 and B's packet 7
  skblab diff A B --times                      every function, with its time in A and in B

The exit status is as diff's: 0 if the journeys are the same, 1 if they differ.
"""
COLOURS = {"-": "red", "+": "green", " ": ""}


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "diff",
        help="show which functions a packet entered in one trace and not in another",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("first", type=Path, metavar="A", help="a trace file")
    parser.add_argument("second", type=Path, metavar="B", help="another trace file")
    parser.add_argument("--packet", type=int, action="append", default=[], metavar="N", dest="packets",
                        help="the packet of A; given again, the packet of B")  # fmt: skip
    parser.add_argument("--times", action="store_true", help="print every function, with its time in both")
    parser.add_argument("--all", action="store_true", help="print the functions that are the same, too")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Compare two journeys; return 1 if they differ."""
    if len(arguments.packets) > 2:
        raise UsageError(
            "--packet is given more than twice", found=f"{len(arguments.packets)} packets", hint="--packet N --packet M"
        )
    first, second = read(arguments.first), read(arguments.second)
    ours = _chosen(first, arguments.first, arguments.packets[:1])
    theirs = _chosen(second, arguments.second, arguments.packets[1:], like=ours)
    for path, trace in ((arguments.first, first), (arguments.second, second)):
        if not trace.whole or trace.end["lost"] or trace.end["forgotten"]:
            print(f"skblab: {path} may lack steps of the packet: {losses(trace)}", file=sys.stderr)
    lines = compare((first, ours), (second, theirs))
    if arguments.json:
        for line in lines:
            print(json.dumps(asdict(line)))
    else:
        _print(arguments, lines, ours, theirs)
    return int(differ(lines))


def _chosen(trace: Trace, path: Path, packets: list[int], like: Journey | None = None) -> Journey:
    found = [one for one in find(trace) if one.is_of_network]
    if packets:
        chosen = next((one for one in found if packets[0] in one.packets), None)
        problem = f"there is no packet {packets[0]} in {path}"
    elif like:
        chosen = alike(found, like)
        problem = f"no packet in {path} is of the kind {kind(like)}"
    else:
        chosen = next(iter(found), None)
        problem = f"there is no network packet in {path}"
    if chosen is None:
        raise UsageError(problem, hint=f"skblab show {path}")
    return chosen


def _print(arguments: argparse.Namespace, lines: list[Line], ours: Journey, theirs: Journey) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    console = Console(highlight=False, soft_wrap=True)
    console.print(Text(f"--- {arguments.first}  packet {ours.first.number}  {ours.first.summary}", style="bold"))
    console.print(Text(f"+++ {arguments.second}  packet {theirs.first.number}  {theirs.first.summary}", style="bold"))
    shown = [lines] if arguments.all or arguments.times else list(hunks(lines))
    for number, run_of_lines in enumerate(shown):
        if number:
            console.print(Text("  ...", style="dim"))
        for line in run_of_lines:
            text = Text(f"{line.mark} ")
            if arguments.times:
                text.append("".join(f"{took / 1000:10.2f}" if took is not None else " " * 10 for took in line.took_ns))
                text.append("  ")
            text.append("  " * line.depth + f"{line.name}()")
            if line.reason:
                text.append(f"  drop: {line.reason}", style="bold")
            text.stylize(COLOURS[line.mark])
            console.print(text)
    if not differ(lines):
        console.print(Text("the journeys are the same", style="dim"))
