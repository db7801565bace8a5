"""Tables: of a sweep, packets down and verdicts across; of a matrix, scenarios down and kernels across."""

from collections import Counter

from rich.table import Table
from rich.text import Text

from skblab.sweep.judge import KINDS
from skblab.sweep.matrix import Case, Matrix
from skblab.sweep.sweep import Done, Sweep

COLOURS = {"same": "green", "slower": "yellow", "faster": "yellow", "unfired": "magenta"}  # the others: red
WAITING, NO_CELL = "", "-"


def table(sweep: Sweep) -> Table:
    """Return the table of the single faults, as far as they are done."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    shown.add_column("#", justify="right")
    shown.add_column("ms", justify="right")
    shown.add_column(f"packet at {', '.join(sweep.scenario.at)}")
    for verdict in sweep.verdicts:
        shown.add_column(verdict)
    alone = {(one.row, one.verdict): sweep.done.get(faults) for faults in sweep.cells for one in faults[:1]
             if len(faults) == 1}  # fmt: skip
    for target in sweep.targets:
        row = [_cell(alone[target.row, verdict]) if (target.row, verdict) in alone else Text(NO_CELL, "dim")
               for verdict in sweep.verdicts]  # fmt: skip
        line = _short(target.seen.summary)
        shown.add_row(str(target.row), f"{target.seen.at_s * 1e3:.3f}", Text(line), *row)
    return shown


def _short(summary: str) -> str:
    """Leave the options of TCP out."""
    before, found, behind = summary.partition(", options [")
    return before + behind.partition("]")[2] if found else summary


def _cell(done: Done | None) -> Text:
    if done is None:
        return Text(WAITING)
    return Text(done.judgement.words, COLOURS.get(done.judgement.kind, "bold red"))


def summary(sweep: Sweep) -> str:
    """Return one line: how many cells of each kind."""
    kinds = Counter(one.judgement.kind for one in sweep.in_order)
    counted = ", ".join(f"{kind} {kinds[kind]}" for kind in KINDS if kinds[kind])
    of_all = "" if sweep.is_complete else f" of {len(sweep.cells)}"
    return f"{len(sweep.done)}{of_all} cells: {counted}"


def matrix_table(matrix: Matrix) -> Table:
    """Return the table of a matrix, as far as its runs are done."""
    kernels = list(dict.fromkeys(case.kernel for case in matrix.cases))
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("scenario", *kernels):
        shown.add_column(heading)
    for name, cases in by_scenario(matrix).items():
        row = [_case(matrix, cases[kernel]) if kernel in cases else Text(NO_CELL, "dim") for kernel in kernels]
        shown.add_row(Text(name), *row)
    return shown


def by_scenario(matrix: Matrix) -> dict[str, dict[str, Case]]:
    """Return the cases of each scenario, by their kernels."""
    rows: dict[str, dict[str, Case]] = {}
    for case in matrix.cases:
        rows.setdefault(case.name, {})[case.kernel] = case
    return rows


def _case(matrix: Matrix, case: Case) -> Text:
    if not matrix.runs[case]:
        return Text(WAITING)
    return Text(matrix.words(case), "bold red" if matrix.is_bad(case) else "green")


def matrix_summary(matrix: Matrix) -> str:
    """Return one line: how many runs, and how many cases passed, failed, or were flaky."""
    kinds = Counter(matrix.words(case).split(" ")[0].rstrip(",") for case in matrix.cases)
    counted = ", ".join(f"{kind} {kinds[kind]}" for kind in ("passed", "flaky", "failed", "not") if kinds[kind])
    runs, cases = _many(matrix.count, "run"), _many(len(matrix.cases), "case")
    done = f"{matrix.done} of " if matrix.done < matrix.count else ""
    return f"{done}{runs} of {cases}: {counted.replace('not ', 'not run ')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
