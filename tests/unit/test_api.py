"""The page of the public interface names what there is, and all that ``import skblab`` offers."""

import importlib
import inspect
import re
from pathlib import Path

import pytest

import skblab
from skblab.guest.boot import Guest
from skblab.guest.mconsole import Mconsole

PAGE = Path(__file__).parents[2] / "docs/reference/python.md"
ROW = re.compile(r"^\| `([\w.]+)` \| (.*) \|$", re.MULTILINE)
NAME = re.compile(r"`(\w+)(?:\(\w*\))?`")
OF_A_LAB = {"lab.guest": Guest, "lab.guest.mconsole": Mconsole}
PROSE = {"pickle"}
ROWS = dict(ROW.findall(PAGE.read_text()))


def named(name: str) -> object:
    """Return what a dotted name of the page stands for."""
    if name in OF_A_LAB:
        return OF_A_LAB[name]
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError:
        module, _, last = name.rpartition(".")
        return getattr(importlib.import_module(module), last)


def attributes(of: object) -> set[str]:
    """Return the names that a module or a class has, and those that its instances get."""
    if not inspect.isclass(of):
        return {*dir(of)}
    ours = [base for base in of.__mro__ if base.__module__.startswith("skblab")]
    found = {*dir(of)}.union(*(inspect.get_annotations(base) for base in ours))
    return found.union(*(re.findall(r"self\.(\w+)", inspect.getsource(base)) for base in ours))


def test_the_page_has_every_name_of_the_package() -> None:
    assert {f"skblab.{name}" for name in skblab.__all__} - {"skblab.SkblabError"} <= ROWS.keys()
    assert "`skblab.SkblabError`" in ROWS["skblab.errors"]
    for name in skblab.__all__:
        assert getattr(skblab, name).__doc__


@pytest.mark.parametrize("name", ROWS)
def test_what_the_page_names_is_there(name: str) -> None:
    of, text = named(name), ROWS[name]
    there = attributes(of) | PROSE | {*skblab.__all__}
    if name in {"skblab.Outcome", "skblab.Session"}:
        there |= attributes(importlib.import_module("skblab.session").RuleOutcome)
    if name == "skblab.agent.streams":
        there |= attributes(importlib.import_module(name).Stream)
    if name == "skblab.errors":
        there |= attributes(skblab.SkblabError)
    assert [one for one in NAME.findall(text) if one not in there] == []


def test_the_package_is_typed() -> None:
    assert (Path(skblab.__file__).parent / "py.typed").exists()
