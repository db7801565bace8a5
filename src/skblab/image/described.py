"""Functions' descriptions of the last build in a directory; gdb is asked again only about changed objects."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from skblab.errors import BuildFailed
from skblab.files import whole
from skblab.host import process

Symbol = tuple[str, int, int]
"""A function's name, its address, its size in bytes."""

Description = list[Any] | None
"""File, line, return type and parameters, or None: no debug info."""

# Linked from all the others: each link makes them again.
OF_ALL = ("vmlinux.o", ".tmp_vmlinux*")


class Described:
    """Descriptions of the functions that were built in a directory, kept in a file beside it.

    A description depends only on the function's object file. Functions of the same name are distinguished by their
    link order, as long as none of them has changed.
    """

    def __init__(self, path: Path, obj: Path) -> None:
        self._path = path
        self._obj = obj

    def recall(self, symbols: Iterable[Symbol]) -> dict[Symbol, Description]:
        """Return the descriptions of those symbols whose object files are unchanged."""
        if not self._path.exists():
            return {}
        now, then = _by_name(symbols), json.loads(self._path.read_text())
        known: dict[Symbol, Description] = {}
        for name in now.keys() & then.keys() - self._changed_names():
            sizes, descriptions = then[name]
            if sizes == [size for _, _, size in now[name]]:
                known.update(zip(now[name], descriptions, strict=True))
        return known

    def keep(self, described: dict[Symbol, Description]) -> None:
        """Save the descriptions."""
        rows = {
            name: ([size for _, _, size in symbols], [described[one] for one in symbols])
            for name, symbols in _by_name(described).items()
        }
        with whole(self._path) as file:
            file.write(json.dumps(rows).encode())

    def _changed_names(self) -> set[str]:
        """Return the names of all symbols in objects compiled since the last build.

        :raises BuildFailed: nm cannot read one, so the changes are unknown
        """
        since_ns = self._path.stat().st_mtime_ns
        changed = [
            path
            for path in self._obj.rglob("*.o")
            if path.stat().st_mtime_ns >= since_ns and not any(map(path.match, OF_ALL))
        ]
        if not changed:
            return set()
        listed = process.run(["nm", "--format=posix", "--defined-only", *changed], timeout_s=60)
        if listed.returncode:
            raise BuildFailed("nm cannot read what was compiled", found=listed.stderr.strip()[-2000:])
        return {line.split()[0] for line in listed.stdout.splitlines() if line}


def _by_name(symbols: Iterable[Symbol]) -> dict[str, list[Symbol]]:
    """Return the symbols of each name, in order of address."""
    found: defaultdict[str, list[Symbol]] = defaultdict(list)
    for symbol in sorted(symbols, key=lambda one: one[1]):
        found[symbol[0]].append(symbol)
    return found
