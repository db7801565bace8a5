"""Run by gdb in batch mode on a kernel: print, as JSON, where a function was inlined.

It needs gdb and the standard library alone.
"""

import json
import os
import sys

import gdb

SOURCE_PREFIX = "/skblab/"


def places(name: str) -> list[tuple[str, str, int]]:
    """Return each function that has an inlined copy of *name*, with that function's file and line."""
    try:
        _, locations = gdb.decode_line(name)
    except gdb.error:
        return []
    found: dict[str, tuple[str, str, int]] = {}
    for sal in locations or ():
        block = gdb.block_for_pc(sal.pc)
        outermost = None
        while block is not None and not block.is_static:
            outermost = block.function or outermost
            block = block.superblock
        if outermost is not None and outermost.name != name:
            file = outermost.symtab.filename.removeprefix(SOURCE_PREFIX).removeprefix("./")
            found.setdefault(outermost.name, (outermost.name, file, outermost.line))
    return list(found.values())


sys.stdout.write(json.dumps(places(os.environ["SKBLAB_FUNCTION"])))
