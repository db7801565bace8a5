"""The index of a kernel's functions: address and parameters."""

import contextlib
import difflib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from skblab.errors import ImageDamaged

SKB_TYPE = "struct sk_buff *"
COLUMNS = "name, address, size, file, line, return_type, parameters"
SCHEMA = f"""
CREATE TABLE functions ({COLUMNS});
CREATE INDEX by_name ON functions (name);
CREATE INDEX by_address ON functions (address);
CREATE TABLE objects (name PRIMARY KEY, address);
"""


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: its name and its C type as gdb prints it."""

    name: str
    type: str


@dataclass(frozen=True, slots=True)
class Function:
    """One function with code of its own.

    ``address`` is a guest virtual address; ``file`` is relative to the kernel's source. ``name`` is the symbol's name,
    with ``.isra.0`` or the like if the compiler has cloned the function.
    """

    name: str
    address: int
    size_bytes: int
    file: str
    line: int
    return_type: str
    parameters: tuple[Parameter, ...]

    @property
    def signature(self) -> str:
        """The function as a C declaration."""
        parameters = ", ".join(
            f"{one.type}{'' if one.type.endswith('*') else ' '}{one.name}" for one in self.parameters
        )
        return f"{self.return_type}{'' if self.return_type.endswith('*') else ' '}{self.name}({parameters or 'void'})"


class FunctionIndex:
    """The functions of one kernel, in an SQLite file of its image, and *more*, those of its modules.

    Every method raises ImageDamaged if the file is not an index.

    :param members: returns the members of structures that point to a module's function, by its address
        (``image.members``); called when somebody asks, for it takes half a second
    """

    def __init__(
        self, path: Path, more: Sequence[Function] = (), members: Callable[[], Mapping[int, tuple[str, ...]]] = dict
    ) -> None:
        self._path = path
        self._members = members
        with self._reading():
            self._kernels = sqlite3.connect(f"file:{path}?mode=ro&immutable=1", uri=True, check_same_thread=False)
            self._connection = self._kernels
            if more:
                self._connection = sqlite3.connect(":memory:", check_same_thread=False)
                self._kernels.backup(self._connection)
                _insert(self._connection, map(_row, more))

    @cached_property
    def members(self) -> Mapping[int, tuple[str, ...]]:
        """The members that point to functions of modules."""
        return self._members()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            image = self._path.parent.name
            raise ImageDamaged(
                f"image {image} is damaged: {self._path.name}", found=str(error),
                hint=f"skblab image rm {image} && skblab image build",
            ) from None  # fmt: skip

    def _rows(self, connection: sqlite3.Connection, query: str, *values: object) -> list[tuple[Any, ...]]:
        with self._reading():
            return connection.execute(query, values).fetchall()

    def lookup(self, name: str) -> Function | None:
        """Return the function of a name; of several static functions, the one at the lowest address."""
        return self._one("name = ? ORDER BY address", name)

    def at(self, address: int) -> Function | None:
        """Return the function whose code has an address."""
        return self._one("address <= ? AND ? < address + size ORDER BY address DESC", address, address)

    def names(self, glob: str = "*") -> list[str]:
        """Return the names that match a shell pattern, sorted."""
        query = "SELECT DISTINCT name FROM functions WHERE name GLOB ? ORDER BY name"
        return [name for (name,) in self._rows(self._connection, query, glob)]

    def all(self) -> list[Function]:
        """Return every function, by address."""
        query = f"SELECT {COLUMNS} FROM functions ORDER BY address"  # noqa: S608
        return [_function(row) for row in self._rows(self._connection, query)]

    def near(self, name: str, count: int = 5) -> list[str]:
        """Return the names most like *name*."""
        return difflib.get_close_matches(name, self.names(), n=count, cutoff=0.7)

    @cached_property
    def text(self) -> tuple[int, int]:
        """First and end address of the kernel's code, without modules."""
        ((start, end),) = self._rows(self._kernels, "SELECT min(address), max(address + size) FROM functions")
        return start, end

    def object_address(self, name: str) -> int | None:
        """Return the address of a data object that the index records, or None."""
        rows = self._rows(self._connection, "SELECT address FROM objects WHERE name = ?", name)
        return rows[0][0] if rows else None

    def _one(self, where: str, *values: object) -> Function | None:
        query = f"SELECT {COLUMNS} FROM functions WHERE {where} LIMIT 1"  # noqa: S608
        return next(map(_function, self._rows(self._connection, query, *values)), None)


def function_of(
    name: str, address: int, size: int, file: str, line: int, return_type: str, parameters: Iterable[tuple[str, str]]
) -> Function:
    """Return the function of a row of COLUMNS, with parameters as pairs."""
    return Function(name, address, size, file, line, return_type, tuple(Parameter(*one) for one in parameters))


def _function(row: tuple[str, int, int, str, int, str, str]) -> Function:
    return function_of(*row[:-1], json.loads(row[-1]))


def _row(function: Function) -> tuple[object, ...]:
    *fields, parameters = (getattr(function, name) for name in Function.__slots__)
    return (*fields, [(one.name, one.type) for one in parameters])


def write_index(path: Path, functions: Iterable[tuple[object, ...]], objects: dict[str, int]) -> None:
    """Write an index; a function is a tuple of COLUMNS with the parameters as pairs."""
    with sqlite3.connect(path) as connection:
        connection.executescript(SCHEMA)
        _insert(connection, functions)
        connection.executemany("INSERT INTO objects VALUES (?, ?)", objects.items())
    connection.close()


def _insert(connection: sqlite3.Connection, functions: Iterable[tuple[object, ...]]) -> None:
    rows = ((*fields, json.dumps(parameters)) for *fields, parameters in functions)
    connection.executemany("INSERT INTO functions VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
