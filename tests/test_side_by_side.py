"""Files of tests run side by side; those that measure wall-clock time run after the others, three at a time."""

import os
import re
import sys
from pathlib import Path

from skblab.host import process

THEIRS = {"CI": "true", "COLUMNS": "40", "NO_COLOR": "1", "PYTHONDONTWRITEBYTECODE": "1", "LC_ALL": "C"}
TESTS = Path(__file__).resolve().parent
ALL = """
import os, select, time
from pathlib import Path
import pytest
from support import Heard, complaints

HERE = Path(__file__).parent

def takes_time(kind):
    began = time.monotonic()
    select.select([], [], [], 0.2)
    with (HERE / "spans").open("a") as file:
        file.write(f"{kind} {began} {time.monotonic()}\\n")

@pytest.mark.parametrize("number", range(12))
def test_beside_others(number):
    takes_time("beside others")

@pytest.mark.wall_clock
@pytest.mark.parametrize("number", range(4))
def test_of_time(number):
    takes_time("of time")
"""
THEY = """
def first_time(name):
    return not (HERE / name).exists() and (HERE / name).write_text("") == 0

def test_what_others_have_set():
    assert not {"CI", "COLUMNS", "NO_COLOR", "PYTHONDONTWRITEBYTECODE"} & os.environ.keys()
    assert os.environ["LC_ALL"] == "C.UTF-8"

@pytest.mark.wall_clock
def test_that_is_late_once():
    assert not first_time("late")

@pytest.mark.wall_clock
def test_in_which_a_kernel_complains_once():
    if first_time("complained"):
        complaints._heard.append(Heard("x", "warning", "WARNING: of the test"))
"""


def test_what_measures_time_runs_when_nothing_else_does_and_is_counted(tmp_path: Path) -> None:
    (tmp_path / "test_they.py").write_text(ALL + THEY)
    for name in ("test_more.py", "test_most.py"):
        (tmp_path / name).write_text(ALL)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-n4",
        "-pconftest",
        f"-c{TESTS.parent}/pyproject.toml",
        str(tmp_path),
        f"--basetemp={tmp_path}/they",
    ]  # or it removed what earlier runs left, which may take minutes
    outside = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = process.run(argv, env=outside | THEIRS | {"PYTHONPATH": str(TESTS)}, timeout_s=100)
    said = done.stdout + done.stderr
    assert done.returncode == 1, said  # for the kernel that complained
    assert re.search(r"^51 tests in \d+ s; run a second time: 2, 1% at most$", said, re.MULTILINE), said
    assert "a guest's kernel complained in " in said
    lines = [line.rsplit(maxsplit=2) for line in (tmp_path / "spans").read_text().splitlines()]
    spans = [(kind, float(began), float(ended)) for kind, began, ended in lines]
    first, last = (min(began for kind, began, _ in spans if kind == "of time"),
                   max(ended for kind, _, ended in spans if kind == "beside others"))  # fmt: skip
    assert first > last
    at_once = [[kind for kind, began, ended in spans if began <= at < ended] for _, at, _ in spans]
    assert ["beside others"] * 3 in at_once
    assert ["of time"] * 3 in at_once
    assert not [kinds for kinds in at_once if "of time" in kinds and (len(kinds) > 3 or len(set(kinds)) > 1)]
