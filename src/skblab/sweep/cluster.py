"""Run cells on many machines, by dask.distributed. A worker that lacks the image gets it, verifies it, and keeps it."""

import io
import logging
import shutil
import tarfile
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from skblab.errors import ImageDamaged, ImageMissing, MissingPrerequisite, SkblabError
from skblab.guest import initramfs
from skblab.image.image import MANIFEST, SOURCE, Image, digest_file
from skblab.image.module import ensure_agent
from skblab.image.reasons import READ
from skblab.image.store import find_image, images_dir
from skblab.spec import LabSpec
from skblab.sweep.cell import CellOutcome, Scenario, run_cell
from skblab.sweep.pool import Cell, Job, Rules

if TYPE_CHECKING:
    from distributed import Client, Future

FAST = 1  # gzip's level: the network is faster than the others
MOST_SHIPPED = 3  # times that one cell finds no image
UNWIND = "unwind-*.bin"


class Dask:
    """A scheduler's workers. Each has skblab and the programs of the scenario, in the same places.

    A worker that dies loses no cell: the scheduler gives it to another one, and a cell with which a worker dies several
    times (``distributed.scheduler.allowed-failures``) is ``lost``.

    :param address: the scheduler's: ``tcp://machine:8786``
    :param cell: runs one cell
    """

    def __init__(self, address: str, cell: Cell = run_cell) -> None:
        self._address = address
        self._cell = cell

    def __call__(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, CellOutcome]]:
        """Run cells; see ``Pool``.

        :raises MissingPrerequisite: dask.distributed is not installed
        :raises SkblabError: the scheduler does not answer
        """
        jobs = list(jobs)
        images = {job.scenario.spec: image_of(job.scenario) for job in jobs}
        with _connected(self._address) as client:
            for image in {image.path: image for image in images.values()}.values():
                _ship(client, image)
            yield from self._run(client, jobs, images)

    def _run(
        self, client: "Client", jobs: Iterable[Job], images: Mapping[LabSpec, Image]
    ) -> Iterator[tuple[Job, CellOutcome]]:
        from distributed import KilledWorker, as_completed  # noqa: PLC0415 - an extra

        def submit(job: Job) -> "Future":
            name = images[job.scenario.spec].name
            return client.submit(run_there, self._cell, job.scenario, name, job.rules, pure=False)

        running = {submit(job): (job, 0) for job in jobs}
        completed = as_completed(list(running), loop=client.loop)
        try:
            for future in completed:
                job, shipped = running.pop(future)
                error = future.exception()
                if isinstance(error, ImageMissing) and shipped < MOST_SHIPPED:  # a worker that came later
                    _ship(client, images[job.scenario.spec])
                    again = submit(job)
                    running[again] = (job, shipped + 1)
                    completed.add(again)
                elif isinstance(error, KilledWorker):
                    yield job, CellOutcome(end="lost", why="its worker died, several times")
                elif error:
                    raise error
                else:
                    yield job, future.result()
        finally:
            client.cancel(list(running))


def image_of(scenario: Scenario) -> Image:
    """Return the image that a scenario's guest boots from.

    :raises ImageMissing: no such image
    """
    path = scenario.spec.image_path
    return Image.open(path) if path else find_image(scenario.spec.series, scenario.spec.variant)


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


def _ship(client: "Client", image: Image) -> None:
    """Give the image to the workers that lack it.

    :raises SkblabError: there are no workers
    """
    lack: dict[str, bool] = client.run(lacks, image.name, ensure_agent(image.path).name)
    if not lack:
        raise SkblabError("the scheduler has no workers", hint="dask worker SCHEDULER")
    if without := [worker for worker, lacks_it in lack.items() if lacks_it]:
        client.run(keep, image.name, packed(image), workers=without)


def packed(image: Image) -> bytes:
    """Return an archive of what an image needs to run, and of the digests; of its source, what rules need."""
    made = [ensure_agent(image.path), initramfs.ensure(image.path), *image.path.glob(UNWIND)]
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


def lacks(name: str, agent: str) -> bool:
    """Return whether this machine's store lacks an image, or the agent for it; runs on a worker."""
    try:
        return not (Image.open(images_dir() / name).path / agent).exists()
    except (ImageMissing, ImageDamaged):
        return True


def keep(name: str, archive: bytes) -> None:
    """Put an image into this machine's store, if its files have their digests; runs on a worker.

    :raises ImageDamaged: a file differs
    """
    place = images_dir() / name
    scratch = Path(tempfile.mkdtemp(dir=images_dir(), prefix=".received-"))
    try:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(scratch, filter="data")
        Image.open(scratch).check()
        scratch.chmod(0o755)  # as the store's other images
        try:
            scratch.rename(place)
        except OSError:  # it is there: another worker of this machine has it, or it lacks the agent
            for file in scratch.iterdir():
                file.rename(place / file.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_there(cell: Cell, scenario: Scenario, name: str, rules: Rules) -> CellOutcome:
    """Run a cell with this machine's copy of an image; runs on a worker.

    :raises ImageMissing: it has none
    """
    image = images_dir() / name
    Image.open(image)
    return cell(replace(scenario, spec=replace(scenario.spec, image=image)), rules)
