"""Run by gdb in batch mode on a kernel: describe functions for the index. Imports gdb and the standard library only."""

import json
import os
import sys

import gdb

SOURCE_PREFIX = "/skblab/"


def describe(address: int) -> tuple[object, ...] | None:
    """Return file, line, return type and parameters of the function at an address; None without debug info."""
    block = gdb.block_for_pc(address)
    while block is not None and not _is_function_at(block, address):
        block = block.superblock
    if block is None or block.function is None:
        return None
    symbol = block.function
    kind = symbol.type
    names = [one.name for one in block if one.is_argument]
    types = [str(field.type) for field in kind.fields()]
    parameters = list(zip(names, types, strict=False))
    return (
        symbol.symtab.filename.removeprefix(SOURCE_PREFIX).removeprefix("./"),
        symbol.line,
        str(kind.target()),
        parameters,
    )


def _is_function_at(block: gdb.Block, address: int) -> bool:
    """Whether a block is a function's outermost one and is entered here; an inlined copy is inside another function's.

    A block begins at its lowest address, which is its cold part's where the kernel puts those first (Linux 7.3).
    """
    outer = block.superblock
    if block.function is None or (outer is not None and outer.function is not None):
        return False
    return block.start == address or int(block.function.value().address) == address


def address_of(expression: str) -> int | None:
    """Return an object's address, or None if this kernel has no such object."""
    try:
        return int(gdb.parse_and_eval(f"&{expression}"))
    except gdb.error:
        return None


def main() -> None:
    """Read {functions: [address], objects: [expression]}; write the functions' descriptions and objects' addresses."""
    with open(os.environ["SKBLAB_INDEX_REQUEST"]) as file:  # noqa: PTH123
        request = json.load(file)
    rows = [describe(address) for address in request["functions"]]
    objects = {name: address for name in request["objects"] if (address := address_of(name)) is not None}
    with open(os.environ["SKBLAB_INDEX_ANSWER"], "w") as file:  # noqa: PTH123
        file.write(json.dumps({"functions": rows, "objects": objects}))  # in C; dump() is not


try:
    main()
except BaseException as error:  # noqa: BLE001 - gdb's batch mode would continue and exit with status 0
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    gdb.execute("quit 1")
