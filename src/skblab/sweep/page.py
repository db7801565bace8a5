"""A sweep as one page that is complete in itself: the table as a heat map, and each cell's conversation."""

from pathlib import Path
from typing import Any

from skblab.sweep.cell import CellOutcome
from skblab.sweep.judge import counters
from skblab.sweep.sweep import Done, Sweep
from skblab.sweep.table import named, summary
from skblab.view import self_contained

TEMPLATE = Path(__file__).with_name("page.html")


def write(sweep: Sweep, path: Path) -> None:
    """Write the page to a new file.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    self_contained.write(TEMPLATE, " ".join(sweep.scenario.client), _Page(sweep).data, path)


class _Page:
    """What the page's script reads; a text stands once in ``lines``."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._lines: dict[str, int] = {}
        bad = sweep.bad
        cells = [self._cell(done, is_bad=done in bad) for done in sweep.in_order]
        self.data = {
            "about": {
                "client": " ".join(sweep.scenario.client),
                "servers": list(sweep.scenario.spec.commands),
                "at": ", ".join(sweep.scenario.at),
                "summary": summary(sweep),
            },
            "verdicts": list(sweep.verdicts),
            "packets": [[one.row, round(one.at_s * 1e3, 6), self._line(one.packet.summary())] for one in sweep.targets],
            "baseline": self._outcome(sweep.baseline) | {"command": sweep.scenario.command(())},
            "cells": cells,
            "lines": list(self._lines),
        }

    def _cell(self, done: Done, *, is_bad: bool) -> dict[str, Any]:
        return self._outcome(done.outcome) | {
            "name": named(done),
            "faults": [[fault.row, fault.verdict] for fault in done.faults],
            "kind": done.judgement.kind,
            "words": done.judgement.words,
            "bad": is_bad,
            "longer": round(done.outcome.duration_s - self._sweep.baseline.duration_s, 9),
            "counters": counters(self._sweep.baseline, done.outcome),
            "command": self._sweep.scenario.command(done.rules),
        }

    def _outcome(self, outcome: CellOutcome) -> dict[str, Any]:
        return {
            "end": outcome.end,
            "why": outcome.why,
            "status": outcome.status,
            "duration": outcome.duration_s,
            "stdout": self._line(outcome.stdout),
            "stderr": self._line(outcome.stderr),
            "complaints": outcome.complaints,
            "packets": [
                [round(one.at_s * 1e3, 6), *one.ends, self._line(one.summary), one.verdict] for one in outcome.packets
            ],
        }

    def _line(self, text: str) -> int:
        return self._lines.setdefault(text, len(self._lines))
