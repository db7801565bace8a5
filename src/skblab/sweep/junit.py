"""A sweep as a JUnit report: a test case for each cell."""

from pathlib import Path
from xml.etree import ElementTree as ET

from skblab import files
from skblab.sweep.sweep import Done, Sweep
from skblab.sweep.table import named


def write(sweep: Sweep, path: Path) -> None:
    """Write the report to a new file.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    cells, bad = sweep.in_order, sweep.bad
    missing = len(sweep.cells) - len(cells)
    suite = ET.Element("testsuite", name="skblab sweep", tests=str(len(sweep.cells)), failures=str(len(bad)),
                        skipped=str(missing), errors="0")  # fmt: skip
    for faults in sweep.cells:
        if done := sweep.done.get(faults):
            _add(suite, sweep, done, is_bad=done in bad)
    for _ in range(missing):
        ET.SubElement(ET.SubElement(suite, "testcase", name="not run"), "skipped")
    ET.indent(suite)
    with files.whole(path, new=True) as file:
        file.write(ET.tostring(suite, encoding="utf-8", xml_declaration=True) + b"\n")


def _add(suite: ET.Element, sweep: Sweep, done: Done, *, is_bad: bool) -> None:
    case = ET.SubElement(suite, "testcase", name=named(done), classname=" ".join(sweep.scenario.client),
                          time=f"{done.outcome.duration_s:.9f}")  # fmt: skip
    repeat = sweep.scenario.command(done.rules)
    if is_bad:
        failure = ET.SubElement(case, "failure", message=done.judgement.words)
        failure.text = _printable(f"{repeat}\n{done.outcome.why}\n{done.outcome.stdout}{done.outcome.stderr}")
    ET.SubElement(case, "system-out").text = _printable(f"{done.judgement.words}\n{repeat}")


def _printable(text: str) -> str:
    """Return a text without the characters that XML does not have."""
    return "".join(one if one.isprintable() or one in "\n\t" else f"\\x{ord(one):02x}" for one in text)
