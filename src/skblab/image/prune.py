"""Keep of a source tree what the kernel was built from: what gdb lists, and no more."""

import re
import shutil
from pathlib import Path

# kbuild writes beside each object what it was made from: "deps_X := \" and one path a line (scripts/basic/fixdep.c).
DEPENDENCY = re.compile(r"^  (?:\$\(wildcard )?(\S+?)\)? \\$", re.MULTILINE)
FIRST = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)


def used_files(obj: Path) -> set[Path]:
    """Return every file that an object of the build was made from, as the build names it."""
    lines: set[str] = set()  # a header is named by hundreds of objects
    for record in obj.rglob(".*.o.cmd"):
        lines.update(record.read_text().splitlines())
    text = "\n".join(lines)
    return {Path(name) for name in (*FIRST.findall(text), *DEPENDENCY.findall(text))}


def copy_used(source: Path, obj: Path, target: Path) -> int:
    """Copy the files the kernel was built from, generated ones under ``obj/``; return how many were not there yet.

    What the compiler brings itself and configuration markers (include/config/) stay out.
    """
    count = 0
    for path in used_files(obj):
        absolute = path if path.is_absolute() else obj / path
        if absolute.is_relative_to(obj):
            place = target / "obj" / absolute.relative_to(obj)
        elif absolute.is_relative_to(source):
            place = target / absolute.relative_to(source)
        else:
            continue
        if "include/config" in str(place) or place.exists() or not absolute.is_file():
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(absolute, place)
        count += 1
    return count
