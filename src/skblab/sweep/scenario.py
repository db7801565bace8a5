"""Scenarios in a file of TOML: read, and written."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from skblab import files, toml
from skblab.errors import SkblabError, UsageError
from skblab.rule import Rule
from skblab.scenario import LAB, digest, lab_spec, lab_table, words
from skblab.sweep.cell import Scenario
from skblab.sweep.expect import Expected
from skblab.toml import Table

SCENARIO, EXPECT = "scenario", "expect"
ANY = "any"  # a status that is not looked at
FORM = "[[scenario]], and below it name = ... and client = ... (docs/how-to/matrix.md)"
OF_SCENARIO: Table = {
    "name": "", "rules": (), "directory": "", "limit_s": 1.0, "at": (), "filter": "", "inside": "", "judged": (),
    "files": (),
}  # fmt: skip
KEYS = (*OF_SCENARIO, "servers", "client", LAB, EXPECT)
OF_EXPECTED = {field.name: field.default for field in dataclasses.fields(Expected)}


def read(path: Path) -> list[Scenario]:
    """Return the scenarios of a file.

    ::

        [lab]                       # of all scenarios: the fields of LabSpec
        root = "host"

        [[scenario]]
        name = "a lost request is sent again"
        servers = ["python3 -m http.server 80"]
        client = "curl -sf http://guest/etc/hostname"
        rules = ["ip_rcv = drop @4"]
        lab = { seed = 7 }          # of this one
        expect = { status = 0, duration_s = [0.2, 0.3], counters = { "host Tcp RetransSegs" = 1 } }

    :raises UsageError: it cannot be read, or makes no sense
    """
    where, top = str(path), toml.read(path, FORM)
    toml.known(where, top, (SCENARIO, LAB))
    shared, tables = toml.table(where, top, LAB), top.get(SCENARIO)
    if not isinstance(tables, list) or not tables or not all(isinstance(one, dict) for one in tables):
        raise UsageError(f"{path} has no scenario", hint=FORM)
    scenarios = [_scenario(path, number, one, shared) for number, one in enumerate(tables, 1)]
    names = [one.name for one in scenarios]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{path} has two scenarios called {twice[0]!r}", hint="another name")
    return scenarios


def _scenario(path: Path, number: int, table: Table, shared: Table) -> Scenario:
    where = f"{path}: scenario {table.get('name') or f'#{number}'}"
    try:
        toml.known(where, table, KEYS)
        fields = {key: toml.typed(key, table[key], like) for key, like in OF_SCENARIO.items() if key in table}
        if "directory" in fields:
            fields["directory"] = str(Path.cwd() / fields["directory"])
        guest = {"time": "virtual"} | shared | toml.table(where, table, LAB)
        expected = _expected(where, toml.table(where, table, EXPECT))
        scenario = Scenario(
            spec=lab_spec(where, guest, toml.typed("servers", table.get("servers", []), ())),
            client=words(table.get("client", "")),
            expected=expected,
            **({"name": f"#{number}"} | fields),
        )
        for rule in scenario.rules:
            Rule.parse(rule)
    except SkblabError as error:
        if error.what.startswith(str(path)):
            raise
        raise UsageError(f"{where}: {error.what}", found=error.found, hint=error.hint) from None
    looked_at = (*scenario.files, *(name for name, _ in expected.files if name not in scenario.files))
    return dataclasses.replace(scenario, files=looked_at)


def _expected(where: str, table: Table) -> Expected:
    toml.known(f"{where}: {EXPECT}", table, OF_EXPECTED)
    fields: Table = {}
    for key, value in table.items():
        if key == "duration_s":
            fields[key] = _range(key, value)
        elif key == "counters":
            fields[key] = tuple(
                (name, *_range(f"counter {name}", one)) for name, one in toml.table(where, table, key).items()
            )
        elif key == "files":
            fields[key] = tuple((name, _content(name, one)) for name, one in toml.table(where, table, key).items())
        elif key in {"stdout_has", "stderr_has"}:
            fields[key] = toml.typed(key, [value] if isinstance(value, str) else value, ())
        elif (key, value) == ("status", ANY):
            fields[key] = None
        else:
            fields[key] = toml.typed(key, value, "" if key in {"stdout", "stderr"} else OF_EXPECTED[key])
    return Expected(**fields)


def _range(key: str, value: object) -> tuple[float, float]:
    """Return the least and the highest value: one number, or a list of two."""
    pair = value if isinstance(value, list) else [value, value]
    if len(pair) != 2 or any(isinstance(one, bool) or not isinstance(one, int | float) for one in pair):
        raise UsageError(f"{key} is a number, or the least and the highest", found=f"{value!r}", hint="[0.2, 0.3]")
    least, most = cast("list[float]", pair)
    return least, most


def _content(name: str, value: object) -> str:
    """Return the digest of what a file has to contain: a text, ``{sha256 = "..."}``, or false for no such file."""
    if isinstance(value, str):
        return digest(value)
    if value is False:
        return ""
    if isinstance(value, dict) and list(value) == ["sha256"]:
        return str(value["sha256"])
    raise UsageError(f"{name}: no content of a file", found=f"{value!r}", hint='"a text", { sha256 = "..." }, or false')


def write(scenarios: Sequence[Scenario], path: Path, comment: str = "") -> None:
    """Write scenarios to a new file, which ``read()`` takes.

    :param comment: a line above them
    :raises CannotWrite: there is such a file, or it cannot be written
    """
    lines = [f"# {line}" for line in comment.splitlines()]
    for one in scenarios:
        lines += ["", f"[[{SCENARIO}]]", *toml.lines(_fields(one))]
        lines += ["", f"[{SCENARIO}.{LAB}]", *toml.lines(lab_table(one.spec))]
        if expected := _expectation(one.expected):
            lines += ["", f"[{SCENARIO}.{EXPECT}]", *toml.lines(expected)]
    with files.whole(path, new=True) as file:
        file.write("\n".join([*lines, ""]).lstrip("\n").encode())


def _changed(of: object, *without: str) -> Table:
    """Return the fields of a data class that differ from their defaults."""
    return {
        field.name: getattr(of, field.name)
        for field in dataclasses.fields(of)  # type: ignore[arg-type] # a data class
        if field.name not in without and getattr(of, field.name) != field.default
    }


def _fields(scenario: Scenario) -> Table:
    servers = {"servers": scenario.spec.commands} if scenario.spec.commands else {}
    return {"name": scenario.name, **servers, **_changed(scenario, "name", "spec", "traced", "expected")}


def _expectation(expected: Expected) -> Table:
    fields = _changed(expected, "duration_s", "counters", "files")
    if expected.status is None:
        fields["status"] = ANY
    if expected.duration_s != Expected().duration_s:
        fields["duration_s"] = list(expected.duration_s)
    if expected.counters:
        fields["counters"] = {name: [least, most] for name, least, most in expected.counters}
    if expected.files:
        fields["files"] = {name: {"sha256": one} if one else False for name, one in expected.files}
    return fields
