"""Perfetto opens what we write: its own page and its own trace processor, asked in SQL."""

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from skblab.agent.abi import Role
from skblab.lab import Lab
from skblab.trace.journey import journeys
from skblab.trace.reader import load
from support import skblab
from view.perfetto_ui import opened

GUEST = "192.168.10.1"
SLICES = """
  select track.name, slice.name, slice.dur, slice.depth, extract_arg(slice.arg_set_id, 'debug.verdict')
  from slice join track on slice.track_id = track.id
"""
FLOWS = """
  select one.name, other.name from flow
  join slice one on flow.slice_out = one.id join slice other on flow.slice_in = other.id
"""


@pytest.fixture(scope="module")
def file(shared_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of a ping that is delayed, and of one that is not."""
    path = tmp_path_factory.mktemp("perfetto") / "run.skblab"
    shared_lab.run(["ping", "-n", "-c", "1", GUEST])
    with shared_lab.trace(filter="icmp", to=path) as tracer:
        with shared_lab.rule("icmp_rcv = delay 20ms"):
            shared_lab.run(["ping", "-n", "-c", "1", GUEST])
        shared_lab.run(["ping", "-n", "-c", "1", GUEST])
        tracer.end(status=0)
    return path


@pytest.mark.slow
def test_it_opens_and_answers(file: Path, browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "run.pftrace"
    done = skblab("export", str(file), "--perfetto", str(path))
    assert done.returncode == 0, done.stderr
    trace = load(file)
    steps = [call.step for one in journeys(trace) if one.is_of_network for _, call in one.walk()]
    with opened(browser, path) as perfetto:
        assert perfetto.query("select name, value from stats where severity = 'error' and value > 0") == []
        rows = perfetto.query(SLICES)
        assert len(rows) == len(steps) > 50
        assert sorted(row[1] for row in rows) == sorted(f"{step.function.name}()" for step in steps)
        took = {step.took_ns for step in steps}
        assert {row[2] for row in rows} <= took | {0}
        ((track, _, _, depth, verdict),) = [row for row in rows if row[4]]
        assert verdict.startswith("delay 20ms: released after 2")
        assert "echo request" in track
        assert depth > 5
        born = [kin for kin in trace.kin if kin.role is Role.BORN]
        arrows = perfetto.query(FLOWS)
        assert len(arrows) == len(born) == 2
        assert {begin for begin, _ in arrows} == {"icmp_reply()"}
