"""Run cells side by side: on this machine in processes of our own."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Protocol

from skblab.errors import SkblabError
from skblab.sweep.cell import CellOutcome, Scenario, run_cell

PR_SET_PDEATHSIG = 1  # prctl(2)

Rules = tuple[str, ...]
Cell = Callable[[Scenario, Rules], CellOutcome]


class Pool(Protocol):
    """Runs cells; yields the rules and the outcome of each when it is done, in any order."""

    def __call__(self, scenario: Scenario, cells: Iterable[Rules]) -> Iterator[tuple[Rules, CellOutcome]]:
        """Run them all; when it is closed, end those that run, and begin no more."""


class Local:
    """Processes on this machine.

    A process that dies takes no cell with it: those that may have been in it run again, one at a time, and the one that
    kills its process again is ``lost``.

    :param workers: how many processes; default: one a processor
    :param cell: runs one cell
    """

    def __init__(self, workers: int = 0, cell: Cell = run_cell) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._cell = cell

    def __call__(self, scenario: Scenario, cells: Iterable[Rules]) -> Iterator[tuple[Rules, CellOutcome]]:
        """Run cells; see ``Pool``."""
        left = dict.fromkeys(cells)
        suspects: list[Rules] = []
        while left:
            alone = bool(suspects)
            batch = [suspects.pop(0)] if suspects else list(left)
            for rules, outcome in self._run(scenario, batch, 1 if alone else self._workers):
                if outcome:
                    del left[rules]
                    yield rules, outcome
            lost = [rules for rules in batch if rules in left]
            if alone and lost:
                del left[lost[0]]
                yield lost[0], CellOutcome(end="lost", why="the process that ran it was killed, twice")
            elif lost:
                suspects = lost[: 2 * self._workers + 1]  # the pool hands one more than it has workers to them

    def _run(
        self, scenario: Scenario, batch: Sequence[Rules], workers: int
    ) -> Iterator[tuple[Rules, CellOutcome | None]]:
        """Yield the outcome of each cell; None for those that a process that died may have had."""
        context = multiprocessing.get_context("spawn")  # a fork has this process's threads' locks
        pool = ProcessPoolExecutor(min(workers, len(batch)), context, _begin, (os.getpid(),))
        try:
            running = {}
            with contextlib.suppress(BrokenProcessPool):
                for rules in batch:
                    running[pool.submit(self._cell, scenario, rules)] = rules
            for future in as_completed(running):
                try:
                    yield running[future], future.result()
                except BrokenProcessPool:
                    yield running[future], None
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(parent: int) -> None:
    """Set up a worker: Ctrl-C is its parent's affair, and it ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def run_all(pool: Pool, scenario: Scenario, cells: Iterable[Rules]) -> Mapping[Rules, CellOutcome]:
    """Run cells to their end; return the outcomes in the cells' order."""
    cells = list(cells)
    done = dict(pool(scenario, cells))
    if missing := [rules for rules in cells if rules not in done]:
        raise SkblabError(f"{len(missing)} cells have no outcome", found="; ".join(missing[0]))
    return {rules: done[rules] for rules in cells}
