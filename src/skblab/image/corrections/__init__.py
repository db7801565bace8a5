"""Correct faults of User Mode Linux without touching the source, which may be a developer's tree.

A corrected copy of the file is put into the build directory, which make searches before the source (VPATH). A source
without the fault is built unchanged. Where neither is known, ``skblab image build`` says so and stops. Each module here
explains its faults beside the texts.
"""

from collections.abc import Sequence
from pathlib import Path

from skblab.image.corrections.coverage import CURRENT_TASK
from skblab.image.corrections.fault import Change, Fault, Finding, Texts, judge
from skblab.image.corrections.fork import KILLED_FORK
from skblab.image.corrections.idle import LOST_WAKE_UPS
from skblab.image.corrections.registers import ROOM
from skblab.image.corrections.stopped import JUMPS
from skblab.image.corrections.vector import VECTOR_FAULTS, VECTOR_USER
from skblab.image.corrections.virtual_time import VIRTUAL_TIME_FAULTS

__all__ = ["FAULTS", "MOVED", "Fault", "Finding", "examine", "put_copies"]

FAULTS = (ROOM, LOST_WAKE_UPS, KILLED_FORK, *VECTOR_FAULTS, *VIRTUAL_TIME_FAULTS, JUMPS, CURRENT_TASK)

COPIES = ".skblab-corrected"  # in the build directory: which files it has copies of

# A copy lies elsewhere; the path is seen from arch/um/include/shared, one of the directories of -I.
MOVED = (Change(VECTOR_USER, '#include "vector_user.h"', '#include "../../drivers/vector_user.h"'),)


def examine(tree: Path, faults: Sequence[Fault]) -> tuple[Finding, ...]:
    """Return which of the faults the source in *tree* has."""
    texts = Texts(tree)
    return tuple(judge(texts, fault) for fault in faults)


def put_copies(tree: Path, obj: Path, findings: Sequence[Finding]) -> None:
    """Put the corrected copies into the build directory *obj*, and remove those that only the last build had."""
    changes = [change for finding in findings for change in finding.changes]
    corrected_files = {change.file for change in changes}
    obj.mkdir(parents=True, exist_ok=True)
    listed = obj / COPIES
    for name in listed.read_text().split() if listed.exists() else ():
        if Path(name) not in corrected_files:
            (obj / name).unlink(missing_ok=True)
    listed.write_text("".join(f"{file}\n" for file in sorted(corrected_files)))
    for file in corrected_files:
        corrected = (tree / file).read_text()
        for change in (*MOVED, *changes):
            if change.file == file:
                corrected = corrected.replace(change.old, change.new)
        copy = obj / file
        if not (copy.is_file() and copy.read_text() == corrected):  # make goes by its time
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(corrected)
