"""Which process runs which tests, and in what order: files as a whole, those that take longest first.

A file's tests share labs, so they stay in one process; the last files are short, so that all processes end together.
Tests that measure wall-clock time come after all others, three at a time: they wait, and two processors are enough.
"""

import fcntl
from collections.abc import Generator, Sequence
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import IO

import pytest
from xdist.scheduler import LoadScopeScheduling

# The files that take more than a quarter of a minute, by pytest --durations=0; one that is not here takes less.
LONGEST = (
    "test_documents", "image/test_build", "debugger/test_prompt", "guest/test_jumbo", "agent/test_soundness",
    "places/test_places", "sweep/test_cluster", "guest/test_pytest_plugin", "sweep/test_command",
    "debugger/test_frozen", "trace/test_journeys", "guest/test_modules", "test_examples", "test_contributing",
    "guest/test_disk", "guest/test_links", "tui/test_terminals", "agent/test_run", "trace/test_protocols",
    "experiments/test_ping", "trace/test_trace_command", "debugger/test_traps", "image/test_store",
    "guest/test_diagnosis", "view/test_exports", "debugger/test_session", "virtual/test_same",
    "guest/test_complaints_reported", "view/test_readers", "tui/test_saved", "agent/test_keeps", "virtual/test_clock",
    "host/test_security", "tui/test_terminal", "trace/test_verdicts", "view/test_page", "lives/test_deaths",
    "guest/test_complaints", "agent/test_malformed", "guest/test_consoles", "guest/test_link_orders",
    "virtual/test_kept", "agent/test_torture", "agent/test_soak", "test_side_by_side",
)  # fmt: skip
SLOTS = 3


def turn(item: pytest.Item) -> tuple[bool, int]:
    """Return what a test is sorted by."""
    file = item.nodeid.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    return measures_time(item), LONGEST.index(file) if file in LONGEST else len(LONGEST)


def measures_time(item: pytest.Item) -> bool:
    """Whether a test measures wall-clock time."""
    return item.get_closest_marker("wall_clock") is not None


class Quiet:
    """What the processes of one run agree on: tests that measure time wait until no process has others left.

    A plugin of pytest's, in each of xdist's processes. By fcntl(2)'s locks of files, which are one process's: a test's
    child would take flock(2)'s along.
    """

    def __init__(self, locks: Path) -> None:
        paths = [Path(f"{locks}.{number}") for number in range(1 + SLOTS)]
        self._others, *self._slots = (path.open("a+") for path in paths)
        fcntl.lockf(self._others, fcntl.LOCK_SH)

    def pytest_sessionfinish(self) -> None:
        """Say that this process, which xdist lets live, has no tests left."""
        fcntl.lockf(self._others, fcntl.LOCK_UN)

    @pytest.hookimpl(wrapper=True, tryfirst=True)  # or the wait counted against the test's time
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Let a test run: one that measures time takes a slot, or all of them."""
        mark = item.get_closest_marker("wall_clock")
        if not mark:
            return (yield)
        for step in (fcntl.LOCK_UN, fcntl.LOCK_EX, fcntl.LOCK_UN):  # waits until every process has come as far
            fcntl.lockf(self._others, step)
        taken = self._slots if mark.kwargs.get("alone") else [self._free_slot()]
        for slot in taken:
            fcntl.lockf(slot, fcntl.LOCK_EX)
        try:
            return (yield)
        finally:
            for slot in taken:
                fcntl.lockf(slot, fcntl.LOCK_UN)

    def _free_slot(self) -> IO[str]:
        for slot in self._slots:
            with suppress(OSError):
                fcntl.lockf(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot
        return self._slots[0]


class Turns(LoadScopeScheduling):  # type: ignore[misc] # xdist is not read, as pyproject.toml says
    """Give each process one run of a file's tests after the other, in the order in which they were collected."""

    def schedule(self) -> None:
        """Begin, once every process has collected."""
        self.config.option.loadscopereorder = False
        self._runs = _runs(next(iter(self.registered_collections.values())))
        super().schedule()

    def _split_scope(self, nodeid: str) -> str:
        return self._runs[nodeid]


def _runs(nodeids: Sequence[str]) -> dict[str, str]:
    """Return the run to which each test belongs: a file's tests, and again a file's tests that measure time."""
    runs = groupby(nodeids, lambda nodeid: nodeid.partition("::")[0])
    return {nodeid: f"{number} {file}" for number, (file, tests) in enumerate(runs) for nodeid in tests}
