"""Prepare a kernel's debug info: gdb's index, which makes gdb start fast, and the index of functions."""

import json
import os
import re
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from skblab.errors import BuildFailed
from skblab.host import process
from skblab.host.gdb import find_gdb
from skblab.image import gdb_index
from skblab.image.described import Described, Description, Symbol
from skblab.image.index import Function, function_of, write_index

IN_GDB = Path(__file__).with_name("index_in_gdb.py")
TIMEOUT_S = 600.0
PROCESSORS = os.cpu_count() or 1
WORTH_A_GDB = 1000  # functions per gdb: describing so many takes as long as starting another gdb

# Data that skblab writes from outside: guest/receive.py.
OBJECTS = ("ip_packet_type.list_func", "ipv6_packet_type.list_func")

# Clones that the compiler split off: parts of a function, not functions of their own.
PARTS = re.compile(r"\.(cold|part)\b")


def add_gdb_index(kernel: Path) -> None:
    """Add a .gdb_index section to a kernel, or another one: gdb then starts in a fraction of the time.

    :raises BuildFailed: gdb or objcopy refused
    """
    with tempfile.TemporaryDirectory(dir=kernel.parent, prefix=".") as scratch:
        run_gdb(kernel, "-ex", f"save gdb-index {scratch}")
        section = Path(scratch, f"{kernel.name}.gdb-index")
        section.write_bytes(gdb_index.shortened(section.read_bytes()))
        run_tool(
            ["objcopy", "--add-section", f".gdb_index={section}", "--set-section-flags", ".gdb_index=readonly", kernel]
        )


def build_index(kernel: Path, index: Path, described: Described) -> None:
    """Write the index of a kernel's functions; ask gdb only about those that *described* does not know.

    :raises BuildFailed: nm or gdb refused
    """
    symbols = [symbol for symbol in code_symbols(kernel) if not PARTS.search(symbol[0])]
    known = described.recall(symbols)
    unknown = sorted((one for one in symbols if one not in known), key=lambda one: one[1])
    share = max(WORTH_A_GDB, len(unknown) // PROCESSORS + 1)
    parts = [unknown[at : at + share] for at in range(0, len(unknown), share)] or [[]]
    with ThreadPoolExecutor(PROCESSORS) as beside:
        answers = list(beside.map(lambda part: _describe(part, [kernel]), parts))
    for answered, _ in answers:
        known |= answered
    described.keep(known)
    write_index(index, _rows(known), answers[0][1])


def describe_module(module: Path, sections: dict[str, int]) -> list[Function]:
    """Return the functions of a loaded module that have debug info.

    :param sections: addresses of its code sections: ``{".text": 0x64400000}``
    :raises BuildFailed: nm or gdb refused
    """
    symbols: list[Symbol] = []
    for (name, address, size), section in symbols_in_sections(module, "FUNC"):
        if section in sections and not PARTS.search(name):
            symbols.append((name, sections[section] + address, size))
    places = " ".join(f"-s {name} {address:#x}" for name, address in sections.items())
    answered, _ = _describe(symbols, ["-ex", f"add-symbol-file {module} {places}"])
    return [function_of(*row) for row in _rows(answered)]


def code_symbols(kernel: Path) -> Iterator[Symbol]:
    """Yield the symbols of a kernel's code, as nm lists them.

    :raises BuildFailed: nm refused
    """
    for line in run_tool(["nm", "--format=posix", "--defined-only", kernel]).splitlines():
        name, kind, address, *size = line.split()
        if kind in "tTwW" and size:
            yield name, int(address, 16), int(size[0], 16)


def symbols_in_sections(program: Path, kind: str) -> Iterator[tuple[Symbol, str]]:
    """Yield the symbols of a kind, FUNC or OBJECT, each with its section.

    :raises BuildFailed: nm refused
    """
    for line in run_tool(["nm", "--format=sysv", "--defined-only", program]).splitlines():
        name, value, _, its_kind, size, _, section = ([*(cell.strip() for cell in line.split("|")), *7 * [""]])[:7]
        if its_kind == kind and size:
            yield (name, int(value, 16), int(size, 16)), section


def _rows(descriptions: dict[Symbol, Description]) -> list[tuple[Any, ...]]:
    return [(*symbol, *description) for symbol, description in descriptions.items() if description]


def _describe(
    symbols: list[Symbol], arguments: list[process.Argument]
) -> tuple[dict[Symbol, Description], dict[str, int]]:
    """Ask gdb for functions' descriptions and the objects' addresses."""
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request"), Path(scratch, "answer")
        request.write_text(json.dumps({"functions": [address for _, address, _ in symbols], "objects": OBJECTS}))
        run_gdb(*arguments, "-x", IN_GDB, SKBLAB_INDEX_REQUEST=str(request), SKBLAB_INDEX_ANSWER=str(answer))
        said = json.loads(answer.read_text())
        return dict(zip(symbols, said["functions"], strict=True)), said["objects"]


def run_gdb(*arguments: process.Argument, **environment: str) -> str:
    """Run gdb in batch mode, without anybody's own settings; return what it prints.

    :raises BuildFailed: it ended with another status than 0
    """
    gdb = find_gdb()
    return run_tool([*gdb.argv, "-nx", "-batch", *arguments], env=gdb.env | environment)


def run_tool(argv: list[process.Argument], env: dict[str, str] | None = None) -> str:
    """Run a tool on debug info; return what it prints.

    :raises BuildFailed: it ended with another status than 0
    """
    done = process.run(argv, env=env, timeout_s=TIMEOUT_S)
    if done.returncode:
        raise BuildFailed(
            f"{Path(str(argv[0])).name} failed on the kernel's debug info", found=done.stderr.strip()[-2000:]
        )
    return done.stdout
