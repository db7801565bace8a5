"""Sweeps and matrices as JUnit reports."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from skblab import files
from skblab.sweep.cell import CellOutcome
from skblab.sweep.matrix import Case, Matrix
from skblab.sweep.sweep import Done, Sweep


@dataclass(frozen=True)
class _Test:
    """A test case of a report; without words it has not been run."""

    name: str
    of: str
    words: str = ""
    text: str = ""
    duration_s: float = 0.0
    is_bad: bool = False


def write(sweep: Sweep, path: Path) -> None:
    """Write the report of a sweep to a new file: a test case for each cell.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    bad = sweep.bad
    missing = [_Test("not run", "")] * (len(sweep.cells) - len(sweep.done))
    tests = [_of_cell(sweep, done, is_bad=done in bad) for done in sweep.in_order]
    _write("skblab sweep", [*tests, *missing], path)


def _of_cell(sweep: Sweep, done: Done, *, is_bad: bool) -> _Test:
    repeat, words = sweep.scenario.command(done.rules), done.judgement.words
    text = f"{repeat}\n{_said(done.outcome)}" if is_bad else f"{words}\n{repeat}"
    return _Test(done.name, " ".join(sweep.scenario.client), words, text, done.outcome.duration_s, is_bad)


def _said(outcome: CellOutcome) -> str:
    return f"{outcome.why}\n{outcome.stdout}{outcome.stderr}"


def write_matrix(matrix: Matrix, path: Path) -> None:
    """Write the report of a matrix to a new file: a test case for each scenario on each kernel.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    _write("skblab matrix", [_of_case(matrix, case) for case in matrix.cases], path)


def _of_case(matrix: Matrix, case: Case) -> _Test:
    runs, failed = matrix.in_order(case), matrix.failed(case)
    if not runs:
        return _Test(case.name, case.kernel)
    duration_s = sum(run.outcome.duration_s for run in runs)
    shown = (failed or runs)[0]
    text = "\n".join([matrix.words(case), *shown.unmet, case.under(shown.seed).command(())])
    text += f"\n{_said(shown.outcome)}" if failed else ""
    return _Test(case.name, case.kernel, matrix.words(case), text, duration_s, bool(failed))


def _write(name: str, tests: Sequence[_Test], path: Path) -> None:
    suite = ET.Element(
        "testsuite", name=name, tests=str(len(tests)), errors="0",
        failures=str(sum(test.is_bad for test in tests)), skipped=str(sum(not test.words for test in tests)),
    )  # fmt: skip
    for test in tests:
        case = ET.SubElement(suite, "testcase", name=_printable(test.name), classname=_printable(test.of),
                             time=f"{test.duration_s:.9f}")  # fmt: skip
        if not test.words:
            ET.SubElement(case, "skipped")
        elif test.is_bad:
            ET.SubElement(case, "failure", message=_printable(test.words)).text = _printable(test.text)
        else:
            ET.SubElement(case, "system-out").text = _printable(test.text)
    ET.indent(suite)
    with files.whole(path, new=True) as file:
        file.write(ET.tostring(suite, encoding="utf-8", xml_declaration=True) + b"\n")


def _printable(text: str) -> str:
    """Return a text without the characters that XML does not have."""
    return "".join(one if one.isprintable() or one in "\n\t" else f"\\x{ord(one):02x}" for one in text)
