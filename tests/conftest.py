"""What all tests share: images of every series, labs, and two rules: CI skips nothing unexpectedly, and no guest's
kernel complains (skblab.guest.complaint) unless its test says ``@pytest.mark.complains(KIND, ...)``.

``pytest -n auto`` runs them side by side, because most of them wait, in the order of ``turns.py``.
"""

import gc
import hashlib
import os
import resource
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from execnet import XSpec
from hypothesis import settings
from xdist.remote import Producer
from xdist.workermanage import WorkerController

import orphans
import turns
from skblab.guest import debian
from skblab.image.image import Image
from skblab.image.recipe import SERIES
from skblab.image.store import cache_dir, find_image
from skblab.lab import Lab
from support import complaints

# Reasons for which a test may be skipped in CI; everywhere else a skip only says its reason.
EXPECTED_IN_CI: frozenset[str] = frozenset()

# What others have set changes what programs print (in CI, pytest cuts no line of its summary), and how long they take
# (a Python that may keep no bytecode starts in twice the time): tests run without it.
SAID_OTHERWISE = (
    "BUILD_NUMBER", "CI", "COLUMNS", "FORCE_COLOR", "LANGUAGE", "LINES", "NO_COLOR", "PYTEST_ADDOPTS", "PY_COLORS",
    "PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED",
)  # fmt: skip

# Of the tests that were run, how many may have been run a second time; one in any case.
MOST_RERUN = 0.01
ABOVE_SELECT = 1500

# The default series runs every test, the newest every test of kernel series, the oldest one of each file: every feature
# runs on each, and the suite's time stays within bounds. --every-series runs all on all.
OLDEST = min(SERIES, key=lambda series: [*map(int, series.split("."))])

# Of a test that failed once and then passed: enough to see why.
LAST_LINES = 30

# Most tests wait: for a guest, a timer, a process that begins.
WORKERS_A_PROCESSOR = 3  # with 2 the processors are idle for a third of the time

# A property of a test, which its report takes to where it is counted.
COMPLAINED = ("a guest's kernel complained", True)

_began_s = time.monotonic()
_began_at = time.time()
_unexpected: list[str] = []
_first_failures: list[pytest.TestReport] = []
_ran: set[str] = set()
_in_ci = bool(os.environ.get("CI"))
_complained: set[str] = set()

for _name in SAID_OTHERWISE:
    os.environ.pop(_name, None)
os.environ["LC_ALL"] = "C.UTF-8"

if "PYTEST_XDIST_WORKER" not in os.environ:  # whose interpreter has done so
    orphans.adopt()

# How long one example takes is this machine's affair.
settings.register_profile("skblab", deadline=None)
settings.load_profile("skblab")

# What is started in the background of a script ignores Ctrl-C, what nohup(1) starts a terminal's end, and so would all
# that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_xdist_auto_num_workers() -> int:
    return WORKERS_A_PROCESSOR * len(os.sched_getaffinity(0))


def pytest_xdist_setupnodes(specs: list[XSpec]) -> None:
    for spec in specs:
        spec.python = shlex.join([sys.executable, orphans.__file__])


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> turns.Turns | None:
    return turns.Turns(config, log) if config.option.dist == "load" else None


def pytest_configure_node(node: WorkerController) -> None:
    node.workerinput["quiet"] = os.environ["XDG_RUNTIME_DIR"] + "/quiet"


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(turns.Quiet(Path(config.workerinput["quiet"])))


def pytest_collection_finish() -> None:
    gc.freeze()  # what stays to the end is not looked at again: a twelfth of the time of some thousand tests


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _ran.add(report.nodeid)
    if COMPLAINED in report.user_properties:
        _complained.add(report.nodeid)
    if str(report.outcome) == "rerun":  # pytest-rerunfailures' own outcome
        _first_failures.append(report)
    if report.skipped and _in_ci and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if reason.removeprefix("Skipped: ") not in EXPECTED_IN_CI:
            _unexpected.append(f"{report.nodeid}: {reason}")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--every-series", action="store_true", help="run every test of kernel series on each of them")


@pytest.hookimpl(trylast=True)  # pytest's own order is by fixtures
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave tests of the oldest series out; let only tests that measure wall-clock time run a second time, and last."""
    asked_for = config.getoption("every_series") or OLDEST in f"{config.args} {config.option.keyword}"
    if left_out := [] if asked_for else _left_out(items):
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    for item in items:
        if turns.measures_time(item):
            item.add_marker(pytest.mark.flaky(reruns=1))
    items.sort(key=turns.turn)


def _left_out(items: list[pytest.Item]) -> list[pytest.Item]:
    """Return the tests of the oldest series, without the first of each file."""
    of_oldest = [item for item in items if isinstance(item, pytest.Function) and _series(item) == OLDEST]
    first: dict[Path, str] = {}
    return [item for item in of_oldest if first.setdefault(item.path, item.nodeid) != item.nodeid]


def _series(item: pytest.Function) -> str | None:
    """Return the series for which a test is one of several."""
    values = item.callspec.params.values() if hasattr(item, "callspec") else ()
    return next((value for value in values if value in SERIES), None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Fail a test in which a kernel complained; after every fixture, because a lab may end in one.

    A second run may pass, because such a fault is often a race: the whole run fails anyway.
    """
    yield
    expected = {kind for mark in item.iter_markers("complains") for kind in mark.args}
    if {"refcount", "list", "odebug"} & expected:
        expected.add("warning")  # what the first line of such a report says
    unexpected = [f"lab {one.lab}: {one.words}" for one in complaints.take() if one.kind not in expected]
    if unexpected:
        item.user_properties.append(COMPLAINED)
        pytest.fail("a guest's kernel complained:\n" + "\n".join(unexpected), pytrace=False)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for report in _first_failures:
        terminalreporter.section(f"failed once: {report.nodeid}", sep="_")
        terminalreporter.write_line("\n".join(report.longreprtext.splitlines()[-LAST_LINES:]))
    terminalreporter.write_line(
        f"{len(_ran)} tests in {time.monotonic() - _began_s:.0f} s; "
        f"run a second time: {len(_first_failures)}, {MOST_RERUN:.0%} at most",
        red=_too_many_ran_again(),
    )
    for nodeid in sorted(_complained):
        terminalreporter.write_line(f"a guest's kernel complained in {nodeid}", red=True)
    for path in _faults():
        terminalreporter.section(f"a fault of skblab itself: {path}", sep="_")
        terminalreporter.write_line(path.read_text())
    for line in _unexpected:
        terminalreporter.write_line(f"unexpected skip in CI: {line}", red=True)


def _faults() -> list[Path]:
    """Return the reports of faults of skblab since the beginning: a test may not see what its program printed."""
    return [
        path for path in Path(tempfile.gettempdir()).glob("skblab-fault-*.txt") if path.stat().st_mtime >= _began_at
    ]


def _too_many_ran_again() -> bool:
    return len(_first_failures) > max(1, MOST_RERUN * len(_ran))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if (_unexpected or _complained or _too_many_ran_again() or _faults()) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def image() -> Image:
    """The default image."""
    return find_image()


@pytest.fixture(scope="session", params=SERIES)
def every_image(request: pytest.FixtureRequest) -> Image:
    """The default variant's image of each series, one after another."""
    return find_image(request.param)


@pytest.fixture
def lab(image: Image) -> Iterator[Lab]:
    """A lab of the test's own."""
    with Lab(image=image) as lab:
        yield lab


@pytest.fixture(scope="module")
def every_lab(every_image: Image) -> Iterator[Lab]:
    """A lab of each series, one after another, for tests that leave it as they found it."""
    with Lab(image=every_image) as lab:
        yield lab


@pytest.fixture(scope="module")
def shared_lab(image: Image) -> Iterator[Lab]:
    """A lab for tests that leave it as they found it."""
    with Lab(image=image) as lab:
        yield lab


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    """So many open descriptors that the next one is too high for select(2)."""
    gc.collect()  # what others have left open takes a low number, and would give it back in between
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2 * ABOVE_SELECT), hard))
    taken = [os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC) for _ in range(ABOVE_SELECT)]
    yield
    for descriptor in taken:
        os.close(descriptor)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture(scope="session")
def debian_disk() -> Path:
    """A Debian, built once for each version of its sources."""
    made_of = debian.hook().read_text() + Path(debian.__file__).read_text()
    path = cache_dir() / "disks" / f"debian-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}.ext4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        debian.build(path)
    return path
