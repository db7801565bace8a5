"""Run by gdb in batch mode on a kernel or a module: where variables have members of certain structures.

Imports gdb and the standard library only.
"""

import json
import os
import sys

import gdb

Offsets = dict[str, int]
"""A member's name, and where it lies in the structure, in bytes."""


def structures(wanted: dict[str, list[str]]) -> dict[str, tuple[int, Offsets]]:
    """Return the size and the members' offsets of those structures that are there."""
    found = {}
    for name, members in wanted.items():
        try:
            kind = gdb.lookup_type(f"struct {name}")
        except gdb.error:  # this kernel was built without what it is for
            continue
        found[name] = (kind.sizeof, {member: kind[member].bitpos // 8 for member in members})
    return found


def structure_of(variable: str, size: int) -> str:
    """Return which structure the variables of a name and a size are; "" where static ones differ in that."""
    symbols = [*gdb.lookup_static_symbols(variable), gdb.lookup_global_symbol(variable)]
    kinds = [one.type.strip_typedefs().unqualified() for one in symbols if one is not None and one.type is not None]
    found = {kind.tag if kind.code == gdb.TYPE_CODE_STRUCT else None for kind in kinds if kind.sizeof == size}
    return (len(found) == 1 and found.pop()) or ""


def main() -> None:
    """Read {members: {structure: [member]}, variables: [[name, bytes]]}; write [[name, bytes, structure, offsets]]."""
    with open(os.environ["SKBLAB_MEMBERS_REQUEST"]) as file:  # noqa: PTH123
        request = json.load(file)
    known = structures(request["members"])
    sizes = {size for size, _ in known.values()}
    variables = sorted({(name, size) for name, size in request["variables"] if size in sizes})  # each takes gdb a while
    kinds = [(name, size, structure_of(name, size)) for name, size in variables]
    found = [(name, size, one, known[one][1]) for name, size, one in kinds if known.get(one, (0,))[0] == size]
    with open(os.environ["SKBLAB_MEMBERS_ANSWER"], "w") as file:  # noqa: PTH123
        file.write(json.dumps(found))


try:
    main()
except BaseException as error:  # noqa: BLE001 - gdb's batch mode would continue and exit with status 0
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    gdb.execute("quit 1")
