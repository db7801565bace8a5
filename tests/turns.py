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
    "test_documents", "image/test_build", "guest/test_pytest_plugin", "sweep/test_cluster", "debugger/test_prompt",
    "places/test_places", "sweep/test_stems", "guest/test_jumbo", "guest/test_disk", "agent/test_soundness",
    "sweep/test_command", "trace/test_trace_command", "trace/test_journeys", "trace/test_protocols",
    "virtual/test_branch", "image/test_store", "experiments/test_ping", "guest/test_modules", "agent/test_run",
    "test_contributing", "debugger/test_frozen", "host/test_ordinary_user", "tui/test_terminals", "guest/test_links",
    "test_examples", "agent/test_malformed", "debugger/test_traps", "view/test_page", "lives/test_shared_labs",
    "guest/test_complaints_reported", "virtual/test_clock", "agent/test_conditions", "tui/test_keys",
    "debugger/test_session", "tui/test_saved", "agent/test_keeps", "sweep/test_matrix", "guest/test_diagnosis",
    "lives/test_deaths", "trace/test_verdicts", "guest/test_exec_command_line", "tui/test_terminal",
    "view/test_readers", "virtual/test_kept", "agent/test_own_driver", "virtual/test_same", "view/test_exports",
    "guest/test_consoles", "agent/test_torture", "unit/test_summary", "guest/test_complaints", "agent/test_backtrace",
    "view/test_perfetto", "agent/test_filters", "guest/test_mconsole", "agent/test_verdicts", "unit/test_sweep",
    "unit/test_edit", "virtual/test_saved", "experiments/test_walk", "image/test_debian_source",
    "guest/test_link_orders", "agent/test_inside", "guest/test_panic", "agent/test_edits", "agent/test_soak",
    "lives/test_interrupts", "tui/test_ping_on_the_screen", "sweep/test_cells", "agent/test_return",
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
