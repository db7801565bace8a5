"""``skblab explore``: several faults at once, at random; the fewest with which a command fails."""

import argparse
import sys
from typing import TYPE_CHECKING

from skblab.cli.options import add_guest_options, add_lab_options
from skblab.cli.sweep import add_sweep_options, sweep_from
from skblab.errors import UsageError

if TYPE_CHECKING:
    from skblab.sweep.sweep import Done

EXAMPLES = """\
examples:
  skblab explore --runs 1000 --seed 1 -g 'redis-server --bind 192.168.10.1' -- ./client-test.sh
  skblab explore --verdicts drop,'delay 3s' --filter udp -g udp:./server -- ./client

The command runs in virtual time: first without a fault, twice, then with one to six faults at once, of different
packets, chosen by the seed. If it does not cope, Hypothesis looks for the fewest faults with which it does not; the
command that runs these again is printed, and the exit status is 1. The faults are those of skblab sweep.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "explore",
        help="run a command with several faults at once, at random, in virtual time",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sweep_options(parser, pairs=False)
    parser.add_argument("--runs", type=int, default=200, metavar="N",
                        help="how many sets of faults to try (default: %(default)s)")  # fmt: skip
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run on the host side, after --")
    add_lab_options(parser, joins=False)
    add_guest_options(parser)
    parser.set_defaults(run=run, time="virtual", lease=60.0, pairs=0)


def run(arguments: argparse.Namespace) -> int:
    """Explore; return 1 if the command does not cope with a set of faults."""
    from skblab.sweep.explore import explore  # noqa: PLC0415
    from skblab.sweep.table import named  # noqa: PLC0415

    if arguments.runs < 1:
        raise UsageError(f"no number of runs: {arguments.runs}", hint="--runs 100")
    sweep = sweep_from(arguments)
    sweep.begin()

    def note(done: "Done") -> None:
        print(f"{named(done)}: {done.judgement.words}", file=sys.stderr)

    least, cells = explore(sweep, arguments.runs, arguments.seed, note)
    if least is None:
        print(f"{cells} sets of faults, and the command copes with all")
        return 0
    print(f"the fewest of {cells} sets: {named(least)}: {least.judgement.words}")
    print(f"  {sweep.scenario.command(least.rules)}")
    return 1
