"""Descriptors are waited for, whatever their numbers."""

import os
import re
import time
from pathlib import Path

import pytest

import skblab
from skblab.host.waiting import wait


@pytest.mark.usefixtures("many_descriptors")
def test_descriptors_above_1024() -> None:
    reads, writes = os.pipe()
    assert reads > 1024
    with os.fdopen(reads, "rb", 0) as reader, os.fdopen(writes, "wb", 0) as writer:
        assert wait([reader], 0) == []
        assert wait([reader], writes=[writer]) == [writer]
        writer.write(b"x")
        assert wait([reader]) == [reader]
        assert set(wait([reader], writes=[writer])) == {reader, writer}


@pytest.mark.wall_clock
def test_it_waits_no_shorter_than_it_was_told() -> None:
    reads, writes = os.pipe()
    started = time.monotonic()
    assert wait([reads], 0.0204) == []
    assert time.monotonic() - started >= 0.0204
    os.close(writes)
    assert wait([reads], 10) == [reads]  # its end
    os.close(reads)
    with pytest.raises(OSError, match="Bad file descriptor"):
        wait([reads])


def test_nobody_else_waits() -> None:
    package = Path(skblab.__file__).parent
    users = {path.name for path in package.rglob("*.py") if re.search(r"(?m)^import select$", path.read_text())}
    assert users == {"waiting.py"}
