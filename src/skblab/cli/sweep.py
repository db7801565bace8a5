"""``skblab sweep``: run a command once for each packet of its conversation and each fault, and show what changes."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.cli.options import add_guest_options, add_lab_options, spec_from
from skblab.cli.progress import Progress, print_table, ran
from skblab.cli.results import JsonLines, add_json_option
from skblab.errors import SkblabError, UsageError
from skblab.files import check_new

if TYPE_CHECKING:
    from skblab.sweep.pool import Pool
    from skblab.sweep.sweep import Sweep

EXAMPLES = """\
examples:
  skblab sweep --root host -g 'python3 -m http.server 80' -- curl -sf http://guest/etc/services
  skblab sweep --verdicts drop,duplicate,'delay 3s' --html report.html -g ./server -- ./client
  skblab sweep --pairs 200 --seed 1 -g ./server -- ./client         and 200 pairs of these faults, chosen by the seed
  skblab sweep --filter udp --at ip_rcv,ip_output -g 'python3 -m http.server 80' -- ./my-test guest

The command runs in virtual time, without a fault, twice; the two runs must be the same. Then it runs once for each
packet and each verdict:
  drop, duplicate, delay 300ms, corrupt, and every other verdict of skblab run, without an occurrence
  reorder   the packet goes on behind the next one at the same function

What a cell of the table says:
  same, +0.204 s                as without a fault; it took longer
  other output, failed 1, hung  the program did not cope
  complaint, died               the guest's kernel did not
The exit status is 1 if the program, or the kernel, did not cope with a fault; below the table is the command that runs
that one again.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "sweep",
        help="run a command with each packet of its conversation lost, late, twice ... in virtual time",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_sweep_options(parser)
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the table and each conversation")
    parser.add_argument("--junit", type=Path, metavar="FILE", help="write a JUnit report, a test case for each cell")
    add_json_option(parser, "the outcome of each cell")
    parser.add_argument("--resume", action="store_true", help="go on with the same sweep, which was interrupted")
    add_pool_options(parser)
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="the command to run on the host side, after --")
    add_lab_options(parser, joins=False)
    add_guest_options(parser)
    parser.set_defaults(run=run, time="virtual", lease=60.0)  # the lease of skblab run, which repeats a cell


def add_sweep_options(parser: argparse.ArgumentParser, *, pairs: bool = True) -> None:
    """Add the options that say which faults there are, and what counts."""
    parser.add_argument("--verdicts", metavar="V,...", help="the faults, with commas between them "
                        "(default: drop,duplicate,delay 300ms,reorder,corrupt)")  # fmt: skip
    parser.add_argument("--at", metavar="FUNCTION,...", help="where packets are counted and meet their faults "
                        "(default: ip_rcv,ipv6_rcv: all that a device receives, in both directions)")  # fmt: skip
    parser.add_argument(
        "--filter", default="", metavar="FILTER", help="only these packets: pcap-filter(7), and conditions"
    )
    parser.add_argument("--inside", default="", metavar="FUNCTION [if FILTER]",
                        help="only inside calls of this function: tcp_v4_rcv if tcp port 80")  # fmt: skip
    if pairs:
        parser.add_argument(
            "--pairs", type=int, default=0, metavar="N", help="also so many cells with two faults at once"
        )
    parser.add_argument("--judge", metavar="PART,...", help="what must be as without a fault: status, stdout, stderr "
                        "(default: all three)")  # fmt: skip
    parser.add_argument("--limit", type=float, default=300.0, metavar="SECONDS",
                        help="of virtual time, after which the command hangs (default: %(default)g)")  # fmt: skip


def add_pool_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where cells run."""
    parser.add_argument("--workers", type=int, default=0, metavar="N",
                        help="how many cells run at once (default: one for each processor)")  # fmt: skip
    parser.add_argument("--dask", metavar="ADDRESS", help="run the cells on the workers of a Dask scheduler: "
                        "tcp://MACHINE:8786 (needs skblab[dask])")  # fmt: skip


def pool_from(arguments: argparse.Namespace) -> "Pool":
    """Return what runs the cells."""
    from skblab.sweep.pool import Local  # noqa: PLC0415

    if arguments.dask:
        from skblab.sweep.cluster import Dask  # noqa: PLC0415

        return Dask(arguments.dask)
    if arguments.workers < 0:
        raise UsageError(f"no number of workers: {arguments.workers}", hint="--workers 2")
    return Local(arguments.workers)


def sweep_from(arguments: argparse.Namespace) -> "Sweep":
    """Return the sweep that the options describe."""
    from skblab.sweep import cell, plan  # noqa: PLC0415 - rich, and the whole of a lab
    from skblab.sweep.sweep import Sweep  # noqa: PLC0415

    if arguments.time != "virtual":
        raise UsageError("a sweep is in virtual time: else no two runs are the same", hint="without --time")
    if arguments.pairs < 0 or arguments.limit <= 0:
        raise UsageError("a number must be positive", found=f"--pairs {arguments.pairs} --limit {arguments.limit:g}")
    scenario = cell.Scenario(
        spec=spec_from(arguments),
        client=tuple(arguments.command),
        limit_s=arguments.limit,
        at=words(arguments.at) or cell.AT,
        filter=arguments.filter,
        inside=arguments.inside,
        judged=words(arguments.judge) or cell.PARTS,
    )
    return Sweep(scenario, words(arguments.verdicts) or plan.VERDICTS, arguments.pairs)


def words(text: str | None) -> tuple[str, ...]:
    """Return the words of an option, which commas divide."""
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def run(arguments: argparse.Namespace) -> int:
    """Sweep; return 1 if a cell is bad."""
    from skblab.sweep.table import summary, table  # noqa: PLC0415

    sweep = sweep_from(arguments)
    json_lines = JsonLines(arguments.json)
    pool = pool_from(arguments)
    check_new(arguments.html, arguments.junit)
    sweep.begin()
    progress = Progress(lambda: table(sweep), lambda: summary(sweep), lambda: (len(sweep.done), len(sweep.cells)))
    ended = ran(sweep.run(pool, resume=arguments.resume), progress)
    _report(sweep, arguments, json_lines)
    if isinstance(ended, SkblabError):
        raise ended
    if ended:
        print("skblab: interrupted; --resume goes on with it", file=sys.stderr)
        return 130
    return int(bool(sweep.bad))


def _report(sweep: "Sweep", arguments: argparse.Namespace, json_lines: JsonLines) -> None:
    """Print the table and the bad cells, and write the files that were asked for."""
    from skblab.sweep import junit, page  # noqa: PLC0415
    from skblab.sweep.table import summary, table  # noqa: PLC0415

    baseline = sweep.baseline
    print(f"without a fault: status {baseline.status}, {baseline.duration_s:.6f} s, {len(sweep.targets)} packets")
    print_table(table(sweep))
    for done in sweep.bad:
        print(f"{done.name}: {done.judgement.words}\n  {sweep.scenario.command(done.rules)}")
    print(summary(sweep))
    for fields in _lines(sweep):
        json_lines.write(fields)
    if arguments.junit:
        junit.write(sweep, arguments.junit)
    if arguments.html:
        page.write(sweep, arguments.html)


def _lines(sweep: "Sweep") -> Iterator[dict[str, object]]:
    """Yield the sweep as JSON objects."""
    baseline = sweep.baseline
    yield {"event": "baseline", "command": sweep.scenario.command(()), **baseline.fields()}
    for done in sweep.in_order:
        yield {
            "event": "cell",
            "packets": [fault.row for fault in done.faults],
            "verdicts": [fault.verdict for fault in done.faults],
            "kind": done.judgement.kind,
            "bad": done in sweep.bad,
            "longer_s": round(done.outcome.duration_s - baseline.duration_s, 9),
            "command": sweep.scenario.command(done.rules),
            "outcome": done.outcome.fields(),
        }
    yield {"event": "end", "cells": len(sweep.cells), "done": len(sweep.done), "bad": len(sweep.bad)}
