"""``skblab explore``: several faults at once, at random; the fewest with which a command fails."""

import argparse
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.cli.options import add_guest_options, add_lab_options
from skblab.cli.sweep import add_sweep_options, sweep_from
from skblab.errors import UNFIRED, UsageError
from skblab.files import check_new

if TYPE_CHECKING:
    from skblab.sweep.sweep import Done

EXAMPLES = f"""\
examples:
  skblab explore --runs 1000 --seed 1 -g 'redis-server --bind 192.168.10.1' -- ./client-test.sh
  skblab explore --save least.toml -g ./server -- ./client; skblab matrix least.toml
  skblab explore --verdicts drop,'delay 3s' --filter udp -g udp:./server -- ./client

The command runs in virtual time: first without a fault, twice, then with one to six faults at once, of different
packets, chosen by the seed. If it does not cope, Hypothesis looks for the fewest faults with which it does not; the
command that runs these again is printed, and the exit status is 1. The faults are those of skblab sweep. If no fault of
any set happened, nothing was tested, and the status is {UNFIRED}.
"""
MOST_SHOWN = 5


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
    parser.add_argument("--coverage", action="store_true",
                        help="trace each run, and try the neighbours of the sets with which packets entered most "
                        "functions of the kernel; a run takes longer")  # fmt: skip
    parser.add_argument("--save", type=Path, metavar="FILE.toml", help="write the fewest faults as a scenario, which "
                        "skblab matrix runs, and which expects what came without a fault")  # fmt: skip
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run on the host side, after --")
    add_lab_options(parser, joins=False)
    add_guest_options(parser)
    parser.set_defaults(run=run, time="virtual", lease=60.0, pairs=0)


def run(arguments: argparse.Namespace) -> int:
    """Explore; return 1 if the command does not cope with a set of faults, UNFIRED if none of them happened."""
    from skblab.sweep import scenario  # noqa: PLC0415
    from skblab.sweep.explore import explore, new_functions  # noqa: PLC0415

    if arguments.runs < 1:
        raise UsageError(f"no number of runs: {arguments.runs}", hint="--runs 100")
    check_new(arguments.save)
    sweep = sweep_from(arguments)
    sweep.scenario = replace(sweep.scenario, traced=arguments.coverage)
    sweep.begin()
    reached: set[str] = set()
    tested: list[str] = []

    def note(done: "Done") -> None:
        if any(done.outcome.fired):
            tested.append(done.name)
        new = new_functions(sweep, done.outcome) - reached
        reached.update(new)
        more = f"; first into {', '.join(sorted(new)[:MOST_SHOWN])}{', ...' * (len(new) > MOST_SHOWN)}" if new else ""
        print(f"{done.name}: {done.judgement.words}{more}", file=sys.stderr)

    least, cells = explore(sweep, arguments.runs, arguments.seed, note)
    if arguments.coverage:
        print(f"packets entered {len(reached)} functions that they do not enter without a fault")
    if least is None:
        if not tested:
            print(f"{cells} sets of faults, and none of them happened: nothing was tested")
            return UNFIRED
        rest = "" if len(tested) == cells else f" {len(tested)} that happened"
        print(f"{cells} sets of faults, and the command copes with all{rest}")
        return 0
    print(f"the fewest of {cells} sets: {least.name}: {least.judgement.words}")
    print(f"  {sweep.scenario.command(least.rules)}")
    if arguments.save:
        scenario.write([sweep.as_scenario(least)], arguments.save, f"{least.judgement.words}; skblab matrix runs it")
        print(f"  skblab matrix {shlex.quote(str(arguments.save))}")
    return 1
