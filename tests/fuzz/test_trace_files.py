"""Damaged trace files: a command prints one error, or shows what can be read."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import fuzzed
from skblab import cli
from skblab.errors import SkblabError
from skblab.lab import Lab
from skblab.trace.file import ALIGNMENT, CHUNK, MAGIC, read_chunks

COMMANDS = (
    ["show", "{file}"], ["show", "{file}", "--table", "--all"], ["show", "{file}", "--json"],
    ["diff", "{file}", "{whole}"], ["diff", "{whole}", "{file}", "--times"],
    ["export", "{file}", "--pcapng", "{out}"], ["export", "{file}", "--html", "{out}"],
    ["export", "{file}", "--perfetto", "{out}"],
)  # fmt: skip
VALUES: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.sampled_from([10**400, -1])
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=4,
)


@pytest.fixture(scope="module")
def whole(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a ping under two rules, with fields."""
    path = tmp_path_factory.mktemp("trace") / "whole.skblab"
    with (
        shared_lab.rule("icmp_rcv = delay 1ms"),
        shared_lab.rule("ip_output = drop @2 if icmp"),
        shared_lab.trace(
            ["icmp_*", "ip_*", "*kfree_skb*"], filter="icmp", fields=["skb->dev->name", "skb->mark"], to=path
        ),
    ):
        shared_lab.run(["ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "192.168.10.1"])
    return path


def damaged_bytes(data: st.DataObject, content: bytes) -> bytes:
    """Overwrite, remove or insert some bytes, at some places; or cut the rest off."""
    changed = bytearray(content)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, max(len(changed) - 1, 0)))
        how = data.draw(st.sampled_from(["overwrite", "insert", "delete", "cut"]))
        some = data.draw(st.binary(min_size=1, max_size=8))
        if how == "overwrite":
            changed[at : at + len(some)] = some
        elif how == "insert":
            changed[at:at] = some
        elif how == "delete":
            del changed[at : at + len(some)]
        else:
            del changed[at:]
    return bytes(changed)


def damaged_values(data: st.DataObject, path: Path) -> bytes:
    """Replace or remove some values of a JSON object, or damage the records."""
    chunks = list(read_chunks(path))
    chosen = data.draw(st.integers(0, len(chunks) - 1))
    written = MAGIC
    for number, (kind, payload) in enumerate(chunks):
        content = bytes(payload)
        if number == chosen:
            content = damaged_bytes(data, content) if kind == b"STEP" else damaged_json(data, content)
        written += CHUNK.pack(kind, len(content)) + content + bytes(-len(content) % ALIGNMENT)
    return written


def damaged_json(data: st.DataObject, content: bytes) -> bytes:
    top = json.loads(content)
    place: Any = None
    key: Any = None
    inside: Any = top
    while isinstance(inside, dict | list) and inside and (place is None or data.draw(st.booleans())):
        place = inside
        keys = sorted(inside) if isinstance(inside, dict) else range(len(inside))
        key = data.draw(st.sampled_from(list(keys)))
        inside = inside[key]
    if place is None:
        return json.dumps(data.draw(VALUES)).encode()
    if data.draw(st.booleans()):
        place[key] = data.draw(VALUES)
    else:
        del place[key]
    return json.dumps(top).encode()


@settings(fuzzed, deadline=None)  # addr2line may read all of a kernel's debug info
@given(data=st.data())
def test_a_damaged_trace(whole: Path, tmp_path: Path, data: st.DataObject) -> None:
    damaged, out = tmp_path / "damaged.skblab", tmp_path / "out"
    by_bytes = data.draw(st.booleans())
    damaged.write_bytes(damaged_bytes(data, whole.read_bytes()) if by_bytes else damaged_values(data, whole))
    out.unlink(missing_ok=True)
    words = [word.format(file=damaged, whole=whole, out=out) for word in data.draw(st.sampled_from(COMMANDS))]
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        arguments = cli._parse(words)
        try:
            status = arguments.run(arguments)
        except SkblabError as error:
            assert error.what.strip()  # noqa: PT017
        else:
            assert status in {0, 1}
