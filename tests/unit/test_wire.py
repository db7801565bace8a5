"""The messages between skblab and its gdb survive the wire, and nothing else is accepted as one."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from skblab.debugger.inside import wire

ARGUMENTS = st.builds(wire.Argument, st.text(), st.text(), st.text())
FRAMES = st.builds(
    wire.GdbFrame, st.text(), st.text(), st.integers(0), st.lists(ARGUMENTS).map(tuple), st.booleans(), st.integers(0)
)
PACKETS = st.builds(
    wire.RawPacket, *[st.integers(0, 2**64 - 1)] * 7, dev=st.text(), linear=st.binary().map(lambda data: data.hex())
)

PLACES = st.builds(wire.Place, st.text(), st.integers(0), st.integers(0, 5), st.none() | st.integers())
PATHS = st.lists(PLACES, max_size=4).map(tuple)


def messages(kind: type[wire.Message]) -> st.SearchStrategy[wire.Message]:
    if kind is wire.Stopped:
        return st.builds(
            wire.Stopped,
            st.text(),
            st.integers(),
            st.text(),
            st.integers(),
            st.lists(FRAMES, max_size=4).map(tuple),
            st.none() | PACKETS,
            st.text(),
        )
    if kind is wire.OpenPrompt:
        return st.builds(
            kind, st.integers(), st.booleans(), st.text(), PATHS, PATHS, PLACES, st.integers(), st.integers()
        )
    by_type: dict[Any, Any] = {"str": st.text(), "int": st.integers(), "int | None": st.none() | st.integers()}
    fields = [by_type[getattr(field.type, "__name__", str(field.type))] for field in dataclasses.fields(kind)]
    return st.builds(kind, *fields)


@pytest.mark.parametrize("kind", wire.Message.kinds.values(), ids=lambda kind: kind.__name__)
@given(data=st.data())
def test_every_message_comes_back_as_it_went(kind: type[wire.Message], data: st.DataObject) -> None:
    message = data.draw(messages(kind))
    line = wire.encode(message)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert wire.decode(line) == message


@pytest.mark.parametrize(
    "line", [b'{"kind": "Nonsense"}', b"{}", b'{"kind": "Attach"}', b'{"kind": "Done", "x": 1}', b"x"]
)
def test_what_is_not_a_message_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"unknown message|malformed|Expecting value"):
        wire.decode(line)
