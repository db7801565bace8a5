"""Files of TOML that people write: what is wrong with one is said with its place; and a writer for our own."""

import difflib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from skblab.errors import UsageError

Table = dict[str, Any]

PLACE = re.compile(r"(.*) \(at line (\d+), column (\d+)\)", re.DOTALL)
LITERAL = re.compile(r"[^'\x00-\x1f\x7f]*")  # between single quotes, TOML has no escapes
MOST_BYTES = 64 << 20
LONG_LINE = 100
TYPES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def read(path: Path, what: str) -> Table:
    """Return what a file has.

    :param what: it should be, for the hint
    :raises UsageError: it cannot be read, or is no TOML
    """
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise UsageError(f"{path} is too long", hint=f"{MOST_BYTES >> 20} MiB at most")
        text = data.decode()
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {path}", found=str(error), hint=what) from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no TOML", found=_place(text, str(error)), hint="https://toml.io") from None
    except (RecursionError, ValueError) as error:  # nested too deeply; a number of many digits
        raise UsageError(f"{path} is no TOML", found=str(error), hint="https://toml.io") from None


def _place(text: str, error: str) -> str:
    """Return where a text is wrong: its line, and a caret."""
    lines, found = text.split("\n"), PLACE.fullmatch(error)
    if not found or int(found[2]) > len(lines):
        return error
    return f"line {found[2]}: {found[1]}\n{lines[int(found[2]) - 1]}\n{' ' * (int(found[3]) - 1)}^"


def known(where: str, table: Mapping[str, object], keys: Iterable[str]) -> None:
    """Refuse a key that is not one of *keys*.

    :raises UsageError: with the nearest one
    """
    for key in table:
        if key not in keys:
            near = difflib.get_close_matches(key, list(keys), 1)
            hint = f"is it {near[0]}?" if near else f"of {', '.join(keys)}"
            raise UsageError(f"{where}: no key is called {key!r}", hint=hint)


def table(where: str, of: Table, key: str) -> Table:
    """Return a table within a table; an empty one if the key is missing.

    :raises UsageError: it is something else
    """
    value = of.get(key, {})
    if not isinstance(value, dict):
        raise UsageError(f"{where}: {key} is no table", found=f"{key} = {value!r}", hint=f"[{key}]")
    return value


def typed(key: str, value: object, like: object) -> Any:  # noqa: ANN401 - of the type of *like*
    """Return a value that has the type of another one; lists become tuples of texts.

    :raises UsageError: it has another type
    """
    if isinstance(like, tuple):
        if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(one, str) for one in value):
            raise UsageError(f"{key} is a list of texts", found=f"{key} = {value!r}", hint=f'{key} = ["...", "..."]')
        return tuple(value)
    kind = (int, float) if isinstance(like, float) else type(like)
    if not isinstance(value, kind) or (isinstance(value, bool) and not isinstance(like, bool)):
        raise UsageError(f"{key} is {TYPES[type(like)]}", found=f"{key} = {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{key} is a number", found=f"{key} = {value!r}")
    return float(value) if isinstance(like, float) and isinstance(value, int) else value


def lines(of: Mapping[str, object]) -> list[str]:
    """Return keys and values as the lines of a table.

    :raises UsageError: a text is not in UTF-8
    """
    return [line for key, value in of.items() for line in f"{_key(key)} = {_text(value)}".split("\n")]


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else quoted(key)


def _text(value: object) -> str:
    if isinstance(value, str):
        return _several_lines(value) if "\n" in value else quoted(value)
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{_key(key)} = {_text(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list | tuple):
        words = [quoted(one) if isinstance(one, str) else _text(one) for one in value]
        on_one = f"[{', '.join(words)}]"
        return on_one if len(on_one) < LONG_LINE else "".join(["[\n", *(f"    {word},\n" for word in words), "]"])
    return repr(value).lower()  # true, 7, 0.25, 1e-07, inf


def quoted(text: str) -> str:
    """Return a text in quotes, in single ones if it has others.

    :raises UsageError: it is not in UTF-8
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"a file of TOML is in UTF-8, and this is not: {text!r}") from None
    if LITERAL.fullmatch(text) and ('"' in text or "\\" in text):
        return f"'{text}'"
    return _escaped(text)


def _escaped(text: str) -> str:
    """Return a text in quotes: JSON's are TOML's, but for one character."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _several_lines(text: str) -> str:
    """Return a text as it is, line by line, between three quotes."""
    quoted(text)
    escaped = (
        "\t".join(_escaped(part)[1:-1] for part in line.split("\t")).replace('\\"', '"').replace('"""', '""\\"')
        for line in text.split("\n")
    )
    return '"""\n' + "\n".join(escaped) + '"""'
