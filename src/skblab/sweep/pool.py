"""Run cells side by side: on this machine in processes of our own."""

import contextlib
import ctypes
import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import util
from typing import TYPE_CHECKING, Protocol

from skblab.errors import SkblabError, UsageError
from skblab.sweep import stem
from skblab.sweep.cell import CellOutcome, Scenario, run_cell

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue
    from multiprocessing.synchronize import Event

PR_SET_PDEATHSIG = 1  # prctl(2)

Rules = tuple[str, ...]
Cell = Callable[[Scenario, Rules], CellOutcome]


@dataclass(frozen=True)
class Job:
    """A cell to run: a scenario, its faults, and the how-manieth time."""

    scenario: Scenario
    rules: Rules = ()
    repeat: int = 0


class Pool(Protocol):
    """Runs cells; yields each with its outcome when it is done, in any order."""

    def __call__(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, CellOutcome]]:
        """Run them all; when it is closed, end those that run, and begin no more."""


class Local:
    """Processes on this machine. A script that runs cells needs ``if __name__ == "__main__"``, as for multiprocessing.

    A process that dies takes no cell with it: those that may have been in it run again, one at a time, and the one that
    kills its process again is ``lost``.

    :param workers: how many processes; default: one a processor
    :param cell: runs one cell
    """

    def __init__(self, workers: int = 0, cell: Cell = run_cell) -> None:
        self._workers = workers or len(os.sched_getaffinity(0))
        self._cell = cell

    def __call__(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, CellOutcome]]:
        """Run cells; see ``Pool``."""
        left = dict.fromkeys(jobs)
        suspects: list[Job] = []
        while left:
            alone = bool(suspects)
            batch = [suspects.pop(0)] if suspects else list(left)
            for job, outcome in self._run(batch, 1 if alone else self._workers):
                if outcome:
                    del left[job]
                    yield job, outcome
            lost = [job for job in batch if job in left]
            if alone and lost:
                del left[lost[0]]
                yield lost[0], CellOutcome(end="lost", why="the process that ran it was killed, twice")
            elif lost:
                suspects = lost[: 2 * self._workers + 1]  # the pool hands one more than it has workers to them

    def _run(self, batch: Sequence[Job], workers: int) -> Iterator[tuple[Job, CellOutcome | None]]:
        """Yield the outcome of each cell; None for those that a process that died may have had."""
        context = multiprocessing.get_context("spawn")  # a fork has this process's threads' locks
        processors, begun = context.SimpleQueue(), context.Event()
        for number in _processors(workers):
            processors.put(number)
        pool = ProcessPoolExecutor(min(workers, len(batch)), context, _begin, (os.getpid(), processors, begun))
        try:
            running = {}
            with contextlib.suppress(BrokenProcessPool), _deaf():
                for job in batch:
                    running[pool.submit(self._cell, job.scenario, job.rules)] = job
            for future in as_completed(running):
                try:
                    yield running[future], future.result()
                except BrokenProcessPool:
                    if not begun.is_set():
                        raise _none_begins() from None
                    yield running[future], None
                except SkblabError as error:
                    raise _in_which(running[future].scenario, error) from None
        finally:
            pool.shutdown(cancel_futures=True)


def _in_which(scenario: Scenario, error: SkblabError) -> SkblabError:
    """Return the error of a cell that could not be run; of one of several scenarios, it says which."""
    if scenario.name:
        error.what = f"{scenario.name}, seed {scenario.spec.seed}: {error.what}"
    return error


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Let a Ctrl-C wait: a process that is started meanwhile does not hear it before ``_begin()``, in its imports."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _none_begins() -> UsageError:
    """Return the error for processes that all end before they can take a cell."""
    return UsageError(
        "no process that runs cells begins",
        found="each runs the main script first, as multiprocessing has it",
        hint="in the script: if __name__ == '__main__': ...",
    )


def _processors(workers: int) -> Iterable[int | None]:
    """Return on which processor each worker is to stay: on one of its own, where there is one for each.

    A worker and the guest of its cell take turns, so a second processor only has to be woken.
    """
    ours = sorted(os.sched_getaffinity(0))
    return ours if workers == len(ours) else [None] * workers


def _begin(parent: int, processors: "SimpleQueue[int | None]", begun: "Event") -> None:
    """Set up a worker: Ctrl-C is its parent's affair, and it ends with its parent."""
    begun.set()
    if (number := processors.get()) is not None:
        with contextlib.suppress(OSError):  # it is not there any more
            os.sched_setaffinity(0, [number])
    stem.keep()
    util.Finalize(None, stem.drop, exitpriority=0)
    gc.freeze()  # what is imported stays: it need not be looked at for each cell
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # as the programs that it starts expect it
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
