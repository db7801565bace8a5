"""Prepare a kernel's debug info: an index so that gdb loads it at once, and the index of functions."""

import json
import re
import tempfile
from pathlib import Path

from skblab.errors import BuildFailed
from skblab.host import process
from skblab.host.gdb import find_gdb
from skblab.image.index import write_index

IN_GDB = Path(__file__).with_name("index_in_gdb.py")
TIMEOUT_S = 600.0

# Places that skblab writes to from outside; see guest/receive.py.
OBJECTS = ("ip_packet_type.list_func", "ipv6_packet_type.list_func")

# Clones that the compiler split off: parts of a function, not functions that anybody calls by name.
PARTS = re.compile(r"\.(cold|part)\b")


def add_gdb_index(kernel: Path) -> None:
    """Put a .gdb_index section into a kernel: gdb then starts in a tenth of the time.

    :raises BuildFailed: gdb or objcopy refused
    """
    with tempfile.TemporaryDirectory() as scratch:
        _gdb(kernel, "-ex", f"save gdb-index {scratch}")
        section = Path(scratch, f"{kernel.name}.gdb-index")
        _run(
            ["objcopy", "--add-section", f".gdb_index={section}", "--set-section-flags", ".gdb_index=readonly", kernel]
        )


def build_index(kernel: Path, index: Path) -> int:
    """Write the index of a kernel's functions and return how many there are.

    :raises BuildFailed: nm or gdb refused
    """
    listed = _run(["nm", "--format=posix", "--defined-only", kernel])
    functions = []
    for line in listed.splitlines():
        name, kind, address, *size = line.split()
        if kind in "tTwW" and size and not PARTS.search(name):
            functions.append((name, int(address, 16), int(size[0], 16)))
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request"), Path(scratch, "answer")
        request.write_text(json.dumps({"functions": functions, "objects": OBJECTS}))
        _gdb(kernel, "-x", str(IN_GDB), SKBLAB_INDEX_REQUEST=str(request), SKBLAB_INDEX_ANSWER=str(answer))
        described = json.loads(answer.read_text())
    write_index(index, described["functions"], described["objects"])
    return len(described["functions"])


def _gdb(kernel: Path, *arguments: str, **environment: str) -> str:
    gdb = find_gdb()
    return _run([*gdb.argv, "-nx", "-batch", *arguments, kernel], env=gdb.env | environment)


def _run(argv: list[process.Argument], env: dict[str, str] | None = None) -> str:
    done = process.run(argv, env=env, timeout_s=TIMEOUT_S)
    if done.returncode:
        raise BuildFailed(
            f"{Path(str(argv[0])).name} failed on the kernel's debug info", found=done.stderr.strip()[-2000:]
        )
    return done.stdout
