"""The trace file survives whatever ends its writer, up to its last whole record."""

import json
import os
import resource
import signal
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skblab.agent import abi
from skblab.errors import CannotWrite, TraceError
from skblab.host import process
from skblab.lab import Lab
from skblab.trace.file import CHUNK, END, MAGIC, META, STEP, TraceWriter, read_chunks
from skblab.trace.journey import journeys
from skblab.trace.reader import load
from support import without_sums

WRITER = """
import os, sys
from pathlib import Path
from skblab.lab import Lab
with Lab() as lab, lab.trace(filter="icmp", to=Path(sys.argv[1])):
    lab.run(["ping", "-c", "3", "-i", "0.1", "192.168.10.1"])
    lab.agent.channel.steps(lab.agent.follower.take)
    print("now", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def whole(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace file of some pings."""
    path = tmp_path_factory.mktemp("trace") / "whole.skblab"
    with shared_lab.trace(filter="icmp", to=path):
        shared_lab.run(["ping", "-n", "-c", "3", "-i", "0.1", "192.168.10.1"])
    return path


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_file_that_was_cut_off_anywhere(whole: Path, tmp_path: Path, share: float) -> None:
    content, path = whole.read_bytes(), tmp_path / "cut.skblab"
    cut = round(share * len(content))
    path.write_bytes(content[:cut])
    if cut < len(MAGIC) + CHUNK.size + CHUNK.unpack_from(content, len(MAGIC))[1]:
        with pytest.raises(TraceError):
            load(path)
        return
    trace, all_of_it = load(path), load(whole)
    assert [step.call for step in trace.steps] == [step.call for step in all_of_it.steps[: len(trace.steps)]]
    kinds = _whole_records(path)
    assert len(trace.steps) == kinds.count(abi.StepKind.STEP)


def _whole_records(path: Path) -> list[int]:
    payload = b"".join(piece for name, piece in read_chunks(path) if name == STEP)
    found, place = [], 0
    while place + abi.RECORD.size <= len(payload):
        size, kind, _ = abi.RECORD.unpack_from(payload, place)
        if place + size > len(payload):
            break
        if kind:
            found.append(kind)
        place += size
    return found


def test_every_whole_record_is_read(whole: Path) -> None:
    trace = load(whole)
    kinds = _whole_records(whole)
    assert kinds.count(abi.StepKind.STEP) == len(trace.steps) > 100
    assert trace.whole
    assert kinds.count(abi.StepKind.KIN) == len(trace.kin)
    assert kinds.count(abi.StepKind.RETURNED) == sum(step.took_ns is not None for step in trace.steps)


def test_a_killed_writer(tmp_path: Path) -> None:
    path = tmp_path / "killed.skblab"
    writer = process.start([sys.executable, "-c", WRITER, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert writer.stdout
    assert writer.stdin
    assert writer.stdout.readline() in {b"now\n", "now\n"}
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait(10)
    writer.stdout.close()
    writer.stdin.close()
    trace = load(path)
    assert not trace.whole
    assert [step.function.name for step in trace.steps].count("icmp_rcv") == 3


@pytest.mark.parametrize("asked", [True, False])
def test_a_trace_that_is_not_to_be_kept_is_gone_with_its_tracer(shared_lab: Lab, *, asked: bool) -> None:
    with shared_lab.trace(["icmp_*"]) as tracer:
        path = tracer.path
        assert path.exists()
    if asked:
        assert tracer.trace().whole
        assert not path.exists()
    del tracer
    assert not path.exists()


def test_no_trace(tmp_path: Path) -> None:
    path = tmp_path / "not.skblab"
    with pytest.raises(TraceError, match="cannot read"):
        load(path)
    path.write_text("nothing of that kind")
    with pytest.raises(TraceError, match="is no trace of skblab"):
        load(path)
    path.write_bytes(MAGIC[:-1] + b"\xff")
    with pytest.raises(TraceError, match="another version") as raised:
        load(path)
    assert "another version" in str(raised.value)


@pytest.mark.parametrize("place", ["no/such", "fifo", "."])
def test_a_file_that_cannot_be_written(shared_lab: Lab, tmp_path: Path, place: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CannotWrite, match="cannot write"), shared_lab.trace(to=tmp_path / place):
        pass


def test_a_full_disk_is_told_at_once_and_what_was_written_is_whole(
    shared_lab: Lab, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "t.skblab"
    tracer = shared_lab.trace(filter="icmp", to=path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with tracer:
            resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10_000, before[1]))
            shared_lab.run(["ping", "-n", "-q", "-i", "0.002", "-c", "200", "192.168.10.1"])
            assert "what was written before is whole" in caplog.text
            with pytest.raises(CannotWrite, match="cannot write") as caught:
                tracer.end()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.hint == "ulimit -f unlimited"
    assert journeys(tracer.trace())
    assert shared_lab.run(["ping", "-n", "-c", "1", "192.168.10.1"]).returncode == 0  # the reading thread lives


def test_chunks(tmp_path: Path) -> None:
    path = tmp_path / "chunks.skblab"
    writer = TraceWriter(path)
    writer.write(META, {"a": 1})
    writer.steps(memoryview(b"12345678"))
    writer.write(END, {})
    writer.close()
    assert [(kind, bytes(payload)) for kind, payload in read_chunks(path)] == [
        (META, json.dumps({"a": 1}, separators=(",", ":")).encode()),
        (STEP, b"12345678"),
        (END, b"{}"),
    ]


def test_each_byte_that_is_damaged_is_found(whole: Path, tmp_path: Path) -> None:
    """Else a packet of the trace has other bytes, or another time, and nobody knows."""
    content, undamaged, damaged = whole.read_bytes(), load(whole), tmp_path / "damaged.skblab"
    ends = (range(len(MAGIC), 200), range(len(content) - 100, len(content)))
    for place in chain(*ends, range(200, len(content), 997)):
        changed = bytearray(content)
        changed[place] ^= 0x10
        damaged.write_bytes(changed)
        try:
            trace = load(damaged)
        except TraceError as error:
            assert "damaged" in error.what or "cut off" in error.found, place  # noqa: PT017
        else:
            assert not trace.whole or trace == undamaged, place


def test_a_file_of_an_older_version_has_no_checksums(whole: Path, tmp_path: Path) -> None:
    older = tmp_path / "older.skblab"
    older.write_bytes(without_sums(whole))
    assert load(older) == load(whole)


@pytest.mark.parametrize(("size", "said"), [(0, "a record of the trace is damaged"), (1 << 20, "longer than the file")])
def test_a_record_whose_size_cannot_be_is_no_lost_0(whole: Path, tmp_path: Path, size: int, said: str) -> None:
    content = bytearray(without_sums(whole))
    place = content.index(STEP) + CHUNK.size
    abi.RECORD.pack_into(content, place, size, *abi.RECORD.unpack_from(content, place)[1:])
    damaged = tmp_path / "damaged.skblab"
    damaged.write_bytes(content)
    with pytest.raises(TraceError, match=said):
        load(damaged)
