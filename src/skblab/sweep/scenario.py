"""Scenarios in a file of TOML: read, and written."""

import dataclasses
import difflib
import json
import math
import re
import shlex
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

from skblab import files
from skblab.errors import SkblabError, UsageError
from skblab.image.image import Image
from skblab.image.store import find_image, images_dir, open_named
from skblab.rule import Rule
from skblab.spec import LabFields, LabSpec
from skblab.sweep.cell import Scenario
from skblab.sweep.expect import Expected, digest

SCENARIO, LAB, EXPECT = "scenario", "lab", "expect"
ANY = "any"  # a status that is not looked at
PLACE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)")
KEYS = ("name", "servers", "client", "rules", "directory", "limit_s", "at", "filter", "judged", "files", LAB, EXPECT)
OF_LAB = {field.name: field.default for field in dataclasses.fields(LabSpec) if field.name != "commands"}
OF_EXPECTED = {field.name: field.default for field in dataclasses.fields(Expected)}

Table = dict[str, Any]


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
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}", found=str(error), hint="a file of TOML with [[scenario]]") from None
    try:
        top = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML", found=_place(text, str(error)), hint="https://toml.io") from None
    except RecursionError:
        raise UsageError(f"{path} is no TOML of scenarios: it is nested too deeply", hint="https://toml.io") from None
    _known(str(path), top, (SCENARIO, LAB))
    shared, tables = _table(path, top, LAB), top.get(SCENARIO)
    if not isinstance(tables, list) or not tables or not all(isinstance(one, dict) for one in tables):
        raise UsageError(f"{path} has no scenario", hint="[[scenario]], and below it name = ... and client = ...")
    scenarios = [_scenario(path, number, one, shared) for number, one in enumerate(tables, 1)]
    names = [one.name for one in scenarios]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"{path} has two scenarios called {twice[0]!r}", hint="another name")
    return scenarios


def _place(text: str, error: str) -> str:
    """Return where a text is wrong: its line, and a caret."""
    lines, found = text.splitlines(), PLACE.fullmatch(error)
    if not found or int(found[2]) > len(lines):
        return error
    return f"line {found[2]}: {found[1]}\n{lines[int(found[2]) - 1]}\n{' ' * (int(found[3]) - 1)}^"


def _known(where: str, table: Mapping[str, object], keys: Iterable[str]) -> None:
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, list(keys), 1)
            raise UsageError(
                f"{where}: no key is called {key!r}", hint=f"{near[0]}?" if near else f"of {', '.join(keys)}"
            )


def _table(where: object, table: Table, key: str) -> Table:
    value = table.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {key} is no table", found=f"{key} = {value!r}", hint=f"[{key}]")
    return value


def _scenario(path: Path, number: int, table: Table, shared: Table) -> Scenario:
    name = table.get("name") or f"#{number}"
    where = f"{path}: scenario {name}"
    try:
        _known(where, table, KEYS)
        fields = {
            key: _typed(key, table[key], default)
            for key, default in _DEFAULTS.items()
            if key in table
        }  # fmt: skip
        if "directory" in fields:
            fields["directory"] = str(Path.cwd() / str(fields["directory"]))
        servers = _typed("servers", table.get("servers", []), ())
        expected = _expected(where, _table(where, table, EXPECT))
        scenario = Scenario(
            spec=_spec(where, shared | _table(where, table, LAB), cast("tuple[str, ...]", servers)),
            client=_words(table.get("client", "")),
            **({"name": str(name), "expected": expected} | fields),  # type: ignore[arg-type] # checked by _typed()
        )
        for rule in scenario.rules:
            Rule.parse(rule)
    except SkblabError as error:
        if error.what.startswith(str(path)):
            raise
        raise UsageError(f"{where}: {error.what}", found=error.found, hint=error.hint) from None
    looked_at = (*scenario.files, *(name for name, _ in expected.files if name not in scenario.files))
    return dataclasses.replace(scenario, files=looked_at)


_DEFAULTS: dict[str, object] = {
    "name": "", "rules": (), "directory": "", "limit_s": 1.0, "at": (), "filter": "", "judged": (), "files": (),
}  # fmt: skip


def _words(client: object) -> tuple[str, ...]:
    """Return a command's words: a list, or one text as a shell has it."""
    if not isinstance(client, str):
        return cast("tuple[str, ...]", _typed("client", client, ()))
    try:
        return tuple(shlex.split(client))
    except ValueError as error:
        raise UsageError("the client is no command", found=f"{client}: {error}", hint="a list of words") from None


def _typed(key: str, value: object, like: object) -> object:
    """Return a value that has the type of another one; lists become tuples of texts."""
    if isinstance(like, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{key} is a list of texts", found=f"{key} = {value!r}", hint=f'{key} = ["...", "..."]')
        return tuple(value)
    kind = (int, float) if isinstance(like, float) else type(like)
    if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(like, bool)):
        what = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}[type(like)]
        raise UsageError(f"{key} is {what}", found=f"{key} = {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key} is a number", found=f"{key} = {value!r}")
    return value


def _spec(where: str, table: Table, servers: tuple[str, ...]) -> LabSpec:
    if "commands" in table:
        raise UsageError(f"{where}: what runs in the guest stands in the scenario", hint='servers = ["..."]')
    _known(f"{where}: {LAB}", table, OF_LAB)
    fields: Table = {"time": "virtual", "commands": servers}
    for key, value in table.items():
        like = "" if key in {"image", "time", "clock"} else OF_LAB[key]
        fields[key] = _typed(key, value, () if key == "link" and isinstance(value, list) else like)
    if "image" in fields:
        fields["image"] = open_named(fields["image"])
    return LabSpec(**cast("LabFields", fields))


def _expected(where: str, table: Table) -> Expected:
    _known(f"{where}: {EXPECT}", table, OF_EXPECTED)
    fields: Table = {}
    for key, value in table.items():
        if key == "duration_s":
            fields[key] = _range(key, value)
        elif key == "counters":
            fields[key] = tuple(
                (name, *_range(f"counter {name}", one)) for name, one in _table(where, table, key).items()
            )
        elif key == "files":
            fields[key] = tuple((name, _content(name, one)) for name, one in _table(where, table, key).items())
        elif key in {"stdout_has", "stderr_has"}:
            fields[key] = _typed(key, [value] if isinstance(value, str) else value, ())
        elif (key, value) == ("status", ANY):
            fields[key] = None
        else:
            fields[key] = _typed(key, value, "" if key in {"stdout", "stderr"} else OF_EXPECTED[key])
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
        lines += ["", f"[[{SCENARIO}]]", *(f"{key} = {_toml(value)}" for key, value in _fields(one).items())]
        lines += ["", f"[{SCENARIO}.{LAB}]", *(f"{key} = {_toml(value)}" for key, value in _lab(one.spec).items())]
        if expected := _expectation(one.expected):
            lines += ["", f"[{SCENARIO}.{EXPECT}]", *(f"{key} = {_toml(value)}" for key, value in expected.items())]
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
    return {"name": scenario.name, **servers, **_changed(scenario, "name", "spec", "expected")}


def _lab(spec: LabSpec) -> Table:
    """Return a guest's fields; of an image that is the newest of its kind, the series and the variant."""
    fields = _changed(spec, "commands", "image", "link")
    if path := spec.image_path:
        image = Image.open(path)
        fields |= {"series": image.series, "variant": image.variant}
        if find_image(image.series, image.variant).path != image.path:
            fields["image"] = image.name if path.parent == images_dir() else str(path)
    return fields


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


def _toml(value: object) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_toml, value)) + "]"
    # JSON's texts, numbers, true and false are TOML's, but for one character.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f").replace("Infinity", "inf")
