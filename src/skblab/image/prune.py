"""Keep the files of a source tree from which the kernel was built: those that gdb lists."""

import re
import shutil
from pathlib import Path

from skblab.host import process

# kbuild lists each object's sources beside it: "deps_X := \" and a path per line (scripts/basic/fixdep.c).
DEPENDENCY = re.compile(r"^  (?:\$\(wildcard )?(\S+?)\)? \\$", re.MULTILINE)
FIRST = re.compile(r"^source_\S+ := (\S+)$", re.MULTILINE)


# Of the kernel, but not in the archive of its objects.
APART = re.compile(r"(arch/x86/um/vdso/.*|init/version-timestamp)\.o")


def linked_objects(obj: Path) -> set[str]:
    """Return the object files of which the kernel was linked; of a kernel before 6.1, none: it has no such archive."""
    return set(process.run(["ar", "t", "vmlinux.a"], cwd=obj).stdout.split())


def used_files(obj: Path) -> set[Path]:
    """Return every file from which an object of the kernel was made, as the build names it.

    Objects that only an earlier build in the directory had, by other options, do not count.
    """
    linked = linked_objects(obj)
    lines: set[str] = set()  # hundreds of objects name the same header
    for record in obj.rglob(".*.o.cmd"):
        name = str(record.relative_to(obj).with_name(record.name[1 : -len(".cmd")]))
        if not linked or name in linked or APART.fullmatch(name):
            lines.update(record.read_text().splitlines())
    text = "\n".join(lines)
    return {Path(name) for name in (*FIRST.findall(text), *DEPENDENCY.findall(text))}


def copy_used(source: Path, obj: Path, target: Path) -> int:
    """Copy the files from which the kernel was built, generated ones to ``obj/``; return how many were new.

    The compiler's own headers and configuration markers (include/config/) are left out.
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
