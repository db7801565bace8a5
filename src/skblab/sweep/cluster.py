"""Run cells on many machines, by dask.distributed. A worker that lacks the image gets it, verifies it, and keeps it."""

import io
import logging
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.errors import ImageDamaged, ImageMissing, MissingPrerequisite, SkblabError
from skblab.guest import initramfs
from skblab.image.image import MANIFEST, SOURCE, Image, digest, digest_file
from skblab.image.members import ensure_members
from skblab.image.module import ensure_agent
from skblab.image.reasons import READ
from skblab.image.store import image_of, images_dir
from skblab.spec import LabSpec
from skblab.sweep import stem
from skblab.sweep.cell import CellOutcome, Scenario, run_cell
from skblab.sweep.pool import Cell, Job, Rules

if TYPE_CHECKING:
    from distributed import Client, Future

FAST = 1  # gzip's level: the network is faster than the others
MOST_FAILED = 20  # times that one cell finds no image
MOST_IN_A_BATCH = 16
Batch = Sequence[Job]
LINGER_S = 30.0  # a worker keeps its stems so long for the next batch
TURNS = 8  # batches for each worker's thread, at least
UNWIND = "unwind-*.bin"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Dask:
    """A scheduler's workers. Each has skblab and the programs of the scenario, in the same places.

    A worker that dies loses no cell: the scheduler gives it to another one, and a cell with which a worker dies several
    times (``distributed.scheduler.allowed-failures``) is ``lost``.

    :param address: the scheduler's: ``tcp://machine:8786``
    :param cell: runs one cell
    :param batch: how many cells a worker gets at once; default: up to MOST_IN_A_BATCH, so that all have work to the end
    """

    def __init__(self, address: str, cell: Cell = run_cell, batch: int = 0) -> None:
        self._address = address
        self._cell = cell
        self._batch = batch

    def __call__(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, CellOutcome]]:
        """Run cells; see ``Pool``.

        :raises MissingPrerequisite: dask.distributed is not installed
        :raises SkblabError: the scheduler does not answer
        """
        jobs = list(jobs)
        images = {
            spec: image_of(spec.image_path, spec.series, spec.variant) for spec in {job.scenario.spec for job in jobs}
        }
        with _connected(self._address) as client:
            for image in {image.path: image for image in images.values()}.values():
                _ship(client, image)
            yield from self._run(client, jobs, images)

    def _run(
        self, client: "Client", jobs: Sequence[Job], images: Mapping[LabSpec, Image]
    ) -> Iterator[tuple[Job, CellOutcome]]:
        from distributed import KilledWorker, as_completed  # noqa: PLC0415 - an extra

        def submit(batch: Batch) -> "Future":
            cells = [(job.scenario, images[job.scenario.spec].name, job.rules) for job in batch]
            return client.submit(run_there, self._cell, cells, pure=False)

        size = self._batch or batch_size(len(jobs), sum(client.nthreads().values()))
        batches = [jobs[at : at + size] for at in range(0, len(jobs), size)]
        running = {submit(batch): (batch, 0) for batch in batches}  # and how often it found no image
        have: set[tuple[str, str]] = set()
        completed = as_completed(list(running), loop=client.loop)

        def again(batch: Batch, failed: int) -> None:
            future = submit(batch)
            running[future] = (batch, failed)
            completed.add(future)

        try:
            for future in completed:
                batch, failed = running.pop(future)
                try:  # a result whose worker has died since is made again, elsewhere
                    outcomes = future.result()
                except ImageMissing as missing:  # a worker that came later
                    if failed == MOST_FAILED:
                        raise
                    lacking = {images[job.scenario.spec].path: images[job.scenario.spec] for job in batch}
                    _ship_once(client, missing.found, lacking.values(), have)
                    again(batch, failed + 1)
                    continue
                except KilledWorker:
                    if len(batch) > 1:  # one of them did it
                        for job in batch:
                            again([job], 0)
                        continue
                    outcomes = [CellOutcome(end="lost", why="its worker died, several times")]
                yield from zip(batch, outcomes, strict=True)
        finally:
            client.cancel(list(running))


def _ship_once(client: "Client", worker: str, images: Iterable[Image], have: set[tuple[str, str]]) -> None:
    """Give images to a worker that came later; it may have asked several times before the first came."""
    for image in images:
        if (worker, image.name) not in have:
            _ship(client, image, [worker])
            have.add((worker, image.name))


def batch_size(cells: int, threads: int) -> int:
    """Return how many cells a worker gets at once: few enough that all have work to the end."""
    return max(1, min(MOST_IN_A_BATCH, cells // (TURNS * max(threads, 1))))


def _connected(address: str) -> "Client":
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError:
        raise MissingPrerequisite("dask.distributed is not installed", hint="pip install 'skblab[dask]'") from None
    logging.getLogger("distributed").setLevel(logging.ERROR)  # a worker that dies is no news to a sweep
    try:
        return Client(address, timeout="10s", set_as_default=False)
    except (OSError, ValueError) as error:
        raise SkblabError(
            f"no scheduler answers at {address}", found=str(error), hint="dask scheduler; tcp://MACHINE:8786"
        ) from None


def _ship(client: "Client", image: Image, workers: list[str] | None = None) -> None:
    """Give the image to the workers that lack it.

    :param workers: their addresses; default: all
    :raises SkblabError: there are no workers
    :raises ImageDamaged: what came to one is not what was sent
    """
    agent = ensure_agent(image.path).name
    stores: dict[str, tuple[str, bool]] = client.run(store_of, image.name, agent, workers=workers, on_error="ignore")
    if not stores and workers is None:
        raise SkblabError("the scheduler has no workers", hint="dask worker SCHEDULER")
    without = {store: worker for worker, (store, lacks_it) in stores.items() if lacks_it}  # one worker a store
    if not without:
        return
    archive = packed(image)
    kept: dict[str, BaseException | None] = client.run(
        keep, image.name, archive, digest(image.path / MANIFEST), workers=list(without.values()), on_error="return"
    )
    for failed in kept.values():
        if isinstance(failed, SkblabError):  # the others are workers that have died
            raise failed


def packed(image: Image) -> bytes:
    """Return an archive of what an image needs to run, and of the digests; of its source, what rules need."""
    made = [
        ensure_agent(image.path),
        initramfs.ensure(image.path),
        ensure_members(image.path, image.kernel),
        *image.path.glob(UNWIND),
    ]
    read = [f"{SOURCE}/{header}" for header in sorted(READ) if (image.source / header).exists()]
    names = [
        MANIFEST,
        *image.files,
        *read,
        *(one.name for path in made for one in (path, digest_file(path)) if one.exists()),
    ]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz", compresslevel=FAST) as tar:
        for name in names:
            tar.add(image.path / name, name)
    return archive.getvalue()


def store_of(name: str, agent: str) -> tuple[str, bool]:
    """Return which store this machine has, and whether it lacks an image, or the agent for it; runs on a worker."""
    at = images_dir().stat()
    return f"{BOOT_ID.read_text().strip()} {at.st_dev} {at.st_ino}", lacks(name, agent)


def lacks(name: str, agent: str) -> bool:
    """Return whether this machine's store lacks an image, or the agent for it, or has it damaged."""
    try:
        image = Image.open(images_dir() / name)
        image.check()
    except (ImageMissing, ImageDamaged):
        return True
    return not (image.path / agent).exists()


def keep(name: str, archive: bytes, manifest: str) -> None:
    """Put an image into this machine's store, if its files have their digests; runs on a worker.

    :param manifest: the digest of the manifest, which has those of the files
    :raises ImageDamaged: a file differs
    """
    place = images_dir() / name
    scratch = Path(tempfile.mkdtemp(dir=images_dir(), prefix=".received-"))
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(scratch, filter="data")
        Image.open(scratch).check()
        if digest(scratch / MANIFEST) != manifest:
            raise ImageDamaged(f"image {name} came with the manifest of another one")
        scratch.chmod(0o755)  # as the store's other images
        try:
            scratch.rename(place)
        except OSError:  # there is one: it is damaged, or lacks the agent
            _replace(scratch, place)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _replace(scratch: Path, place: Path) -> None:
    """Put an image's files over those of another one; a lab that runs keeps those that it has open."""
    for file in scratch.iterdir():
        if file.is_dir():
            shutil.copytree(file, place / file.name, dirs_exist_ok=True)
        else:
            file.rename(place / file.name)


def run_there(cell: Cell, cells: Sequence[tuple[Scenario, str, Rules]]) -> list[CellOutcome]:
    """Run cells with this machine's copies of their images; runs on a worker.

    :raises ImageMissing: it lacks one; *found* is this worker
    """
    from distributed import get_worker  # noqa: PLC0415 - an extra

    images = {name: images_dir() / name for _, name, _ in cells}
    try:
        for image in images.values():
            Image.open(image)
    except ImageMissing as missing:
        missing.found = get_worker().address
        raise
    with stem.kept(LINGER_S):
        return [
            cell(replace(scenario, spec=replace(scenario.spec, image=images[name])), rules)
            for scenario, name, rules in cells
        ]
