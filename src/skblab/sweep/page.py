"""A sweep, or a matrix, as one page that is complete in itself: the table as a map, and each cell's conversation."""

from pathlib import Path
from typing import Any

from skblab.sweep.cell import CellOutcome
from skblab.sweep.judge import counters
from skblab.sweep.matrix import Case, Matrix
from skblab.sweep.sweep import Done, Sweep
from skblab.sweep.table import by_scenario, matrix_summary, summary
from skblab.view import self_contained

TEMPLATE = Path(__file__).with_name("page.html")
OF_A_SWEEP = {
    "heading": "What each fault changed",
    "now": "with the fault",
    "before": "without",
    "legend": [["same", "same"], ["slower", "slower, faster"], ["bad", "did not cope"], ["unfired", "no such packet"]],
}
OF_A_MATRIX = {
    "heading": "Scenarios on kernels",
    "now": "in this run",
    "before": "in one that passed",
    "legend": [["same", "passed"], ["bad", "failed, flaky"]],
}

Data = dict[str, Any]


def write(sweep: Sweep, path: Path) -> None:
    """Write the page of a sweep to a new file.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    self_contained.write(TEMPLATE, f"{' '.join(sweep.scenario.client)} - skblab sweep", _of_sweep(sweep), path)


def write_matrix(matrix: Matrix, path: Path) -> None:
    """Write the page of a matrix to a new file.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    self_contained.write(TEMPLATE, "skblab matrix", _of_matrix(matrix), path)


class _Lines:
    """What the page's script reads of outcomes; a text stands once in ``texts``."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}

    @property
    def texts(self) -> list[str]:
        return list(self._lines)

    def number(self, text: str) -> int:
        return self._lines.setdefault(text, len(self._lines))

    def outcome(self, outcome: CellOutcome, before: CellOutcome | None) -> Data:
        """Return an outcome, beside another one."""
        return {
            "end": outcome.end,
            "why": outcome.why,
            "status": outcome.status,
            "duration": outcome.duration_s,
            "now": self._written(outcome),
            "before": self._written(before) if before else [],
            "complaints": outcome.complaints,
            "counters": counters(before, outcome) if before else [],
            "packets": [
                [round(one.at_s * 1e3, 6), *one.ends, self.number(one.summary), one.verdict] for one in outcome.packets
            ],
        }

    def _written(self, outcome: CellOutcome) -> list[int]:
        return [self.number(outcome.stdout), self.number(outcome.stderr)]


def _of_sweep(sweep: Sweep) -> Data:
    lines, bad = _Lines(), sweep.bad
    numbers = {done.faults: number for number, done in enumerate(sweep.in_order)}
    places = {(fault.row, fault.verdict): numbers[faults] for faults in numbers for fault in faults if len(faults) == 1}
    about = [*sweep.scenario.spec.commands, f"packets at {', '.join(sweep.scenario.at)}", summary(sweep)]
    baseline = {"name": "Without a fault", "words": "", "bad": False, "command": sweep.scenario.command(())}
    return {
        "about": {"client": " ".join(sweep.scenario.client), "line": " | ".join(about), **OF_A_SWEEP},
        "head": ["#", "ms", "packet", *sweep.verdicts],
        "rows": [
            [
                [one.row, f"{one.seen.at_s * 1e3:.3f}", one.seen.summary],
                [places.get((one.row, verdict)) for verdict in sweep.verdicts],
            ]
            for one in sweep.targets
        ],
        "others": ["Two faults at once", [number for faults, number in numbers.items() if len(faults) > 1]],
        "baseline": lines.outcome(sweep.baseline, sweep.baseline) | baseline,
        "cells": [_of_cell(sweep, done, lines, is_bad=done in bad) for done in sweep.in_order],
        "lines": lines.texts,
    }


def _of_cell(sweep: Sweep, done: Done, lines: _Lines, *, is_bad: bool) -> Data:
    return lines.outcome(done.outcome, sweep.baseline) | {
        "name": done.name,
        "kind": done.judgement.kind,
        "words": done.judgement.words,
        "bad": is_bad,
        "command": sweep.scenario.command(done.rules),
    }


def _of_matrix(matrix: Matrix) -> Data:
    lines = _Lines()
    cases = [case for case in matrix.cases if matrix.runs[case]]
    numbers = {case: number for number, case in enumerate(cases)}
    kernels = list(dict.fromkeys(case.kernel for case in matrix.cases))
    rows = [
        [[name], [numbers.get(of_kernel[kernel]) if kernel in of_kernel else None for kernel in kernels]]
        for name, of_kernel in by_scenario(matrix).items()
    ]
    cells = [_of_case(matrix, case, lines) for case in cases]
    return {
        "about": {"client": "skblab matrix", "line": matrix_summary(matrix), **OF_A_MATRIX},
        "head": ["scenario", *kernels],
        "rows": rows,
        "others": ["", []],
        "baseline": cells[0] if cells else None,
        "cells": cells,
        "lines": lines.texts,
    }


def _of_case(matrix: Matrix, case: Case, lines: _Lines) -> Data:
    """Return a case by its first run that failed, beside one that passed if there is one."""
    runs, failed = matrix.in_order(case), matrix.failed(case)
    shown = (failed or runs)[0]
    passed = next((run.outcome for run in runs if not run.unmet), None) if failed else None
    under = f"seed {shown.seed}"
    return lines.outcome(shown.outcome, passed) | {
        "name": f"{case.name} on {case.kernel}, {under}",
        "kind": "failed" if failed else "same",
        "words": "; ".join([matrix.words(case), *shown.unmet]),
        "short": matrix.words(case),
        "bad": bool(failed),
        "command": case.under(shown.seed).command(()),
    }
