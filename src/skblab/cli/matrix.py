"""``skblab matrix``: run the scenarios of a file on several kernels, under several seeds, again and again."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.cli.progress import Progress, print_table, ran
from skblab.cli.results import JsonLines, add_json_option
from skblab.cli.sweep import add_pool_options, pool_from, words
from skblab.errors import SkblabError, UsageError
from skblab.files import check_new
from skblab.image.recipe import VARIANTS

if TYPE_CHECKING:
    from skblab.sweep.matrix import Case, Matrix

EXAMPLES = """\
examples:
  skblab matrix scenario.toml
  skblab matrix scenario.toml --series 6.1,6.12,7.3 --variant default,kasan
  skblab matrix scenario.toml --seed 1..100 --repeat 2 --junit out.xml --html out.html
  skblab matrix scenario.toml --only 'a lost request' --dask tcp://scheduler:8786

a file of scenarios, which run in virtual time:
  [lab]                                   # of all of them: a guest, by the fields of LabSpec
  memory_mib = 128

  [[scenario]]
  name = "a lost request is sent again"
  servers = ["python3 -m http.server 80"]
  client = "curl -sf http://guest/etc/hostname"
  rules = ["ip_rcv = drop @4"]
  [scenario.expect]                       # default: status 0, every rule fires, and the kernel does not complain
  duration_s = [0.2, 0.5]
  counters = { "host Tcp RetransSegs" = 1 }

The exit status is 1 if a run is not as expected. A case that fails in some runs only is flaky: seeds, and the command
that runs it again, stand below the table.
"""
RANGE = re.compile(r"(\d+)(?:\.\.(\d+))?")
MOST_SEEDS = 1_000_000
MOST_SHOWN = 10


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "matrix",
        help="run scenarios on several kernels, under several seeds, and say which fail, and how often",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="scenarios, in TOML")
    parser.add_argument("--series", metavar="S,...", help="kernel series (default: each scenario's): 6.1,6.12,7.3")
    parser.add_argument("--variant", metavar="V,...", help="sets of kernel options (default: each scenario's): "
                        f"{','.join(sorted(VARIANTS))}")  # fmt: skip
    parser.add_argument("--seed", metavar="N,...", help="seeds (default: each scenario's): 1..5, or 1,7,20..29")
    parser.add_argument("--repeat", type=int, default=1, metavar="N",
                        help="how often each runs under each seed (default: %(default)s)")  # fmt: skip
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only the scenario of that name; "
                        "may be given several times")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page with the table and each conversation")
    parser.add_argument("--junit", type=Path, metavar="FILE",
                        help="write a JUnit report, a test case for each scenario on each kernel")  # fmt: skip
    add_json_option(parser, "the outcome of each run")
    add_pool_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the matrix; return 1 if a run is not as expected."""
    from skblab.sweep.table import matrix_summary, matrix_table  # noqa: PLC0415 - rich

    matrix = _matrix(arguments)
    json_lines = JsonLines(arguments.json)
    pool = pool_from(arguments)
    check_new(arguments.html, arguments.junit)
    progress = Progress(
        lambda: matrix_table(matrix), lambda: matrix_summary(matrix), lambda: (matrix.done, matrix.count)
    )
    ended = ran(matrix.run(pool), progress)
    _report(matrix, arguments, json_lines)
    if isinstance(ended, SkblabError):
        raise ended
    if ended:
        print("skblab: interrupted", file=sys.stderr)
        return 130
    return int(bool(matrix.bad))


def _matrix(arguments: argparse.Namespace) -> "Matrix":
    from skblab.sweep.matrix import Matrix  # noqa: PLC0415 - the whole of a lab
    from skblab.sweep.scenario import read  # noqa: PLC0415

    scenarios = read(arguments.file)
    names = [one.name for one in scenarios]
    if unknown := [name for name in arguments.only if name not in names]:
        raise UsageError(f"{arguments.file} has no scenario called {unknown[0]!r}", hint=f"of: {', '.join(names)}")
    if arguments.repeat < 1:
        raise UsageError(f"no number of runs: {arguments.repeat}", hint="--repeat 10")
    return Matrix(
        [one for one in scenarios if not arguments.only or one.name in arguments.only],
        words(arguments.series),
        words(arguments.variant),
        list(_numbers(arguments.seed or "")),
        arguments.repeat,
    )


def _numbers(text: str) -> Iterator[int]:
    """Yield the numbers of ``1,7,20..29``."""
    for word in words(text):
        found = RANGE.fullmatch(word)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if first > last or last - first > MOST_SEEDS:
            raise UsageError(f"no seeds: {word}", hint="--seed 1..5, or --seed 1,7")
        yield from range(first, last + 1)


def _report(matrix: "Matrix", arguments: argparse.Namespace, json_lines: JsonLines) -> None:
    """Print the table and what failed, and write the files that were asked for."""
    from skblab.sweep import junit, page  # noqa: PLC0415
    from skblab.sweep.table import matrix_summary, matrix_table  # noqa: PLC0415

    print_table(matrix_table(matrix))
    for case in matrix.cases:
        for line in _about(matrix, case):
            print(line)
    print(matrix_summary(matrix))
    for fields in _lines(matrix):
        json_lines.write(fields)
    if arguments.junit:
        junit.write_matrix(matrix, arguments.junit)
    if arguments.html:
        page.write_matrix(matrix, arguments.html)


def _about(matrix: "Matrix", case: "Case") -> Iterator[str]:
    """Yield what there is to say about a case: why it failed, and where two runs differ."""
    failed = matrix.failed(case)
    if failed:
        seeds = list(dict.fromkeys(run.seed for run in failed))
        more = f" and {len(seeds) - MOST_SHOWN} more" if len(seeds) > MOST_SHOWN else ""
        under = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds[:MOST_SHOWN]))}{more}"
        yield f"{case.name} on {case.kernel}: {matrix.words(case)}: {under}"
        yield from (f"  {line}" for line in failed[0].unmet)
        yield f"  {case.under(failed[0].seed).command(())}"
    for seed, how in matrix.unlike(case)[:1]:
        yield f"{case.name} on {case.kernel}: two runs under seed {seed} differ, and in virtual time they should not"
        yield from (f"  {line}" for line in how[:MOST_SHOWN])


def _lines(matrix: "Matrix") -> Iterator[dict[str, object]]:
    """Yield the matrix as JSON objects."""
    for case in matrix.cases:
        of = {"scenario": case.name, "kernel": case.kernel}
        for run in matrix.in_order(case):
            yield {
                "event": "run", **of, "seed": run.seed, "repeat": run.repeat, "passed": not run.unmet,
                "unmet": run.unmet, "command": case.under(run.seed).command(()), "outcome": run.outcome.fields(),
            }  # fmt: skip
        runs, failed = len(matrix.runs[case]), len(matrix.failed(case))
        unlike = [seed for seed, _ in matrix.unlike(case)]
        yield {"event": "case", **of, "runs": runs, "failed": failed, "flaky": 0 < failed < runs, "unlike": unlike}
    yield {"event": "end", "runs": matrix.count, "done": matrix.done, "bad": len(matrix.bad)}
