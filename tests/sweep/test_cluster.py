"""Cells on a Dask cluster: a real scheduler, and two real workers with stores and directories of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cells import empty, with_image
from skblab.errors import ImageDamaged, SkblabError
from skblab.host import process
from skblab.image.image import MANIFEST, Image, digest
from skblab.spec import LabSpec
from skblab.sweep import cluster
from skblab.sweep.cell import Scenario
from skblab.sweep.pool import Job, Local
from skblab.sweep.sweep import Sweep
from support import read_until

TESTS = Path(__file__).resolve().parents[1]
THOUSAND = [(str(number),) for number in range(1000)]
PING = ("ping", "-n", "-c2", "-i9", "guest")


@dataclass(frozen=True)
class Cluster:
    address: str
    workers: list[process.Process]
    directories: list[Path]

    def start(self, directory: Path) -> None:
        """Start one more worker, with a store of its own."""
        directory.mkdir()
        options = ["--nthreads", "1", "--no-nanny", "--no-dashboard", "--host", "127.0.0.1"]
        self.workers.append(started(["worker", self.address, *options], directory, "Registered to:")[0])
        self.directories.append(directory)


def started(words: list[str], directory: Path, ready: str) -> tuple[process.Process, str]:
    path = os.pathsep.join(filter(None, (str(TESTS), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"SKBLAB_CACHE": str(directory), "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}
    running = process.start(
        [sys.executable, "-m", "distributed.cli.dask_" + words[0], *words[1:]],
        cwd=directory, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    assert running.stdout
    return running, read_until(running.stdout.fileno(), lambda text: ready in text, within_s=60)


@pytest.fixture
def dask(tmp_path: Path) -> Iterator[Cluster]:
    place = tmp_path / "scheduler"
    place.mkdir()
    scheduler, said = started(
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"], place, "Scheduler at:"
    )
    cluster = Cluster(said.partition("Scheduler at:")[2].split()[0], [], [])
    try:
        for name in ("one", "two"):
            cluster.start(tmp_path / name)
        yield cluster
    finally:
        for one in (*reversed(cluster.workers), scheduler):
            process.end(one)


@pytest.mark.timeout(300)  # it starts three workers
def test_a_thousand_cells_and_a_worker_that_is_killed(dask: Cluster, image: Image, tmp_path: Path) -> None:
    """Each worker gets the image; all cells have the outcomes that they have on one machine."""
    scenario = Scenario(spec=LabSpec(image=image, time="virtual"), client=("client",), directory=str(tmp_path))
    cells = [Job(scenario, rules) for rules in THOUSAND]
    done = {}
    for job, outcome in cluster.Dask(dask.address, empty)(cells):
        done[job] = outcome
        if len(done) == 100:
            dask.workers[0].send_signal(signal.SIGKILL)
        if len(done) == 300:  # the only one that is left when the others have ended came later
            dask.start(tmp_path / "three")
            dask.workers[1].send_signal(signal.SIGKILL)
    assert done == dict(Local(1, empty)(cells))
    for directory in dask.directories:
        copy = Image.open(directory / "images" / image.name)
        assert copy.check() == ["source"]
        assert copy.path != image.path
    damaged = dask.directories[2] / "images" / image.name / "vmlinux"
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    ((_, outcome),) = cluster.Dask(dask.address, with_image)([Job(scenario, ("a",))])
    assert outcome.stdout == f"{damaged.parent} a"
    assert damaged.read_bytes() == content


def test_a_sweep_is_the_same_on_a_cluster(dask: Cluster, image: Image) -> None:
    scenario = Scenario(spec=LabSpec(image=image, time="virtual", seed=5), client=PING, judged=("status",))
    here, there = (Sweep(scenario, ("drop", "duplicate")) for _ in range(2))
    here.begin()
    there.begin(cluster.Dask(dask.address))
    assert there.baseline == here.baseline
    assert len(list(here.run())) == 8
    for _ in there.run(cluster.Dask(dask.address)):
        if len(there.done) == 3:
            dask.workers[1].send_signal(signal.SIGKILL)
    assert there.in_order == here.in_order


def test_no_scheduler() -> None:
    scenario = Scenario(spec=LabSpec(time="virtual"), client=("client",))
    with pytest.raises(SkblabError, match="no scheduler answers"):
        next(cluster.Dask("tcp://127.0.0.1:1")([Job(scenario)]))


def test_a_damaged_image_is_not_kept(image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    archive = cluster.packed(image)
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path))
    assert cluster.lacks(image.name, "agent.ko")
    check = Image.check
    monkeypatch.setattr(Image, "check", lambda self: (self.config.write_text("CONFIG_X=y"), check(self))[1])
    with pytest.raises(ImageDamaged):
        cluster.keep(image.name, archive, digest(image.path / MANIFEST))
    monkeypatch.undo()
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path))
    with pytest.raises(ImageDamaged, match="another"):
        cluster.keep(image.name, archive, "0" * 64)
    assert not list((tmp_path / "images").iterdir())
