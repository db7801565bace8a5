"""Functions' descriptions of the last build are used again only if their objects have not changed."""

import json
import os
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.described import Described, Symbol

SOURCES = {
    "one.c": "static int twice(int x) { return 2 * x; } int one(int x) { return twice(x) + twice(x + 1); }",
    "two.c": "static int twice(int x) { return x + x; } int two(int x) { return twice(x) * twice(x - 1); }",
}
FIRST: dict[Symbol, list[object]] = {
    ("one", 0x100, 40): ["one.c", 1, "int", []],
    ("twice", 0x140, 20): ["one.c", 1, "int", []],
    ("two", 0x180, 40): ["two.c", 1, "int", []],
    ("twice", 0x200, 24): ["two.c", 1, "int", []],
}
MOVED = [("one", 0x110, 40), ("twice", 0x150, 20), ("two", 0x190, 40), ("twice", 0x210, 24)]


@pytest.fixture
def obj(tmp_path: Path) -> Path:
    """Two objects, older than their descriptions."""
    directory = tmp_path / "obj"
    directory.mkdir()
    for name in SOURCES:
        compiled(directory, name)
        os.utime(directory / f"{name}.o", (0, 0))
    return directory


@pytest.fixture
def described(tmp_path: Path, obj: Path) -> Described:
    known = Described(tmp_path / "described.json", obj)
    assert known.recall(FIRST) == {}
    known.keep({**FIRST, ("in_assembly", 0x300, 8): None})
    return known


def compiled(directory: Path, name: str) -> None:
    source = directory / name
    source.write_text(SOURCES[name])
    done = process.run(["gcc", "-c", "-fno-inline", source, "-o", directory / f"{name}.o"])
    assert done.returncode == 0, done.stderr


def test_what_has_only_moved_is_known(described: Described) -> None:
    known = described.recall([*MOVED, ("in_assembly", 0x310, 8), ("new", 0x320, 8)])
    assert {symbol: description[0] if description else None for symbol, description in known.items()} == {
        ("one", 0x110, 40): "one.c",
        ("twice", 0x150, 20): "one.c",
        ("two", 0x190, 40): "two.c",
        ("twice", 0x210, 24): "two.c",
        ("in_assembly", 0x310, 8): None,
    }


def test_of_an_object_that_was_compiled_since_nothing_is_known(described: Described, obj: Path) -> None:
    compiled(obj, "two.c")
    assert described.recall(MOVED).keys() == {("one", 0x110, 40)}


def test_of_names_that_are_no_longer_as_many_or_as_long_nothing_is_known(described: Described) -> None:
    assert described.recall([*MOVED[:3], ("one", 0x400, 40)]).keys() == {("two", 0x190, 40)}
    assert described.recall([("one", 0x110, 41), ("two", 0x190, 40)]).keys() == {("two", 0x190, 40)}


def test_what_is_linked_of_all_does_not_count(described: Described, obj: Path) -> None:
    done = process.run(["ld", "-r", *obj.glob("*.o"), "-o", obj / "vmlinux.o"])
    assert done.returncode == 0, done.stderr
    assert len(described.recall(MOVED)) == len(MOVED)


def test_what_is_kept_is_whole_or_not_there(described: Described, tmp_path: Path) -> None:
    described.keep({("one", 0x110, 40): ["one.c", 2, "int", []]})
    assert json.loads((tmp_path / "described.json").read_text()) == {"one": [[40], [["one.c", 2, "int", []]]]}
    assert [path.name for path in tmp_path.glob("described*")] == ["described.json"]
