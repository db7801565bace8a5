"""The store of images: where they are kept, and which one a lab takes."""

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from skblab import files
from skblab.errors import ImageDamaged, ImageInUse, ImageMissing, MissingPrerequisite, UsageError
from skblab.host import process, registry
from skblab.image.image import KERNEL, MANIFEST, Image
from skblab.image.recipe import DEFAULT_SERIES, recipe_for

IMAGES = "images"  # in the cache
REMOVED = ".removed-"
ANOTHER_CACHE = "SKBLAB_CACHE=DIR, a directory of your own"


def cache_dir() -> Path:
    """Return the cache: ``$SKBLAB_CACHE``, else ``$XDG_CACHE_HOME/skblab``, else ``~/.cache/skblab``.

    :raises MissingPrerequisite: this user has no home directory
    """
    if own := os.environ.get("SKBLAB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "skblab"
    except RuntimeError:
        raise MissingPrerequisite("this user has no home directory for the cache", hint=ANOTHER_CACHE) from None


def images_dir() -> Path:
    """Return the directory of images, made if it is missing, readable by other users.

    :raises MissingPrerequisite: it cannot be made or read
    """
    return files.directory(cache_dir() / IMAGES, 0o755, what="the directory of images", hint=ANOTHER_CACHE)


def is_of_store(path: Path) -> bool:
    """Whether a path is that of an image in the store, which need not be there: its name says which one."""
    try:
        return path.parent == cache_dir() / IMAGES
    except MissingPrerequisite:
        return False


def builds_dir() -> Path:
    """Return the directory of what is kept for the next build: objects of developers' trees, and unpacked sources.

    It is made if it is missing.

    :raises MissingPrerequisite: it cannot be made, or read
    """
    return files.directory(cache_dir() / "builds", 0o700, what="the directory of builds", hint=ANOTHER_CACHE)


def lock_of(target: Path) -> Path:
    """Return the file whose lock ``alone()`` holds."""
    return target.with_name(f".lock-{target.name}")


@contextlib.contextmanager
def alone(target: Path, waiting: Callable[[], object]) -> Iterator[None]:
    """Hold the lock of what is built; every program that is started meanwhile inherits it, and it ends with the last.

    :param waiting: called where another one builds it
    """
    descriptor = os.open(lock_of(target), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            waiting()
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with process.kept_open(descriptor):
            yield
    finally:
        os.close(descriptor)


def list_images() -> tuple[list[Image], list[ImageDamaged]]:
    """Return the images, the last one built or asked for first, and the errors of the damaged ones."""
    images, damaged = [], []
    directories = [path for path in images_dir().iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(directories, key=_wanted_ns, reverse=True):
        try:
            images.append(Image.open(path))
        except ImageMissing:
            damaged.append(
                ImageDamaged(f"image {path.name} is damaged: no {MANIFEST}", hint=f"skblab image rm {path.name}")
            )
        except ImageDamaged as error:
            damaged.append(error)
    return images, damaged


def _wanted_ns(path: Path) -> int:
    try:
        return (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0


def find_image(series: str = DEFAULT_SERIES, variant: str = "default") -> Image:
    """Return the image of *series* and *variant* by this skblab's recipe that was built or asked for last.

    :raises ImageMissing: no such image; the hint says how to build it
    :raises ImageDamaged: the image is damaged
    """
    recipe = recipe_for(series, variant)
    images, damaged = list_images()
    fitting = [image for image in images if (image.series, image.variant) == (series, variant)]
    for image in fitting:
        if image.recipe == recipe.key:
            return image
    for error in damaged:
        if f"{series}-{variant}-" in error.what:
            raise error
    build = f"skblab image build --series {series}" + (f" --variant {variant}" if variant != "default" else "")
    older = f"{fitting[0].name} was built by another recipe" if fitting else f"looked in {images_dir()}"
    raise ImageMissing(f"no image of Linux {series}, variant {variant}", found=older, hint=build)


def image_of(path: Path | None, series: str, variant: str) -> Image:
    """Return the image at *path*, if one is given, else that of *series* and *variant*: what a LabSpec says of it.

    :raises ImageMissing: no such image
    """
    return Image.open(path) if path else find_image(series, variant)


def open_named(name: str) -> Image:
    """Return an image by its name in the store, or by its directory.

    :raises ImageMissing: no such image
    """
    return Image.open(Path(name) if "/" in name else images_dir() / name)


def remove_builds() -> None:
    """Remove what is kept for the next build; a build in progress fails."""
    hidden = images_dir() / f"{REMOVED}builds-{os.getpid()}"  # of what is half removed, nothing is built
    builds_dir().rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)  # the next build removes the rest


def remove_image(name: str) -> None:
    """Remove an image, damaged or not; it disappears from the store at once.

    :raises UsageError: no such image
    :raises ImageInUse: a lab runs its kernel
    """
    path = images_dir() / name
    if not name or "/" in name or name.startswith(".") or not path.is_dir():
        raise UsageError(f"no image named {name}", hint="skblab image ls")
    if kernels := process.that_run((path / KERNEL).resolve()):
        raise _in_use(name, kernels)
    hidden = path.with_name(f"{REMOVED}{path.name}-{os.getpid()}")
    path.rename(hidden)
    shutil.rmtree(hidden, ignore_errors=True)  # the next build removes the rest


def _in_use(name: str, kernels: list[int]) -> ImageInUse:
    owner = next(filter(None, map(registry.owner_of, kernels)), None)
    if owner is None:  # a lab of another user, or in another runtime directory
        return ImageInUse(f"image {name} is in use", found=f"by a guest kernel, pid {kernels[0]}",
                          hint=f"kill {kernels[0]}")  # fmt: skip
    end = f"skblab down {owner.name}" if owner.kept else f"kill {owner.pid}"
    return ImageInUse(f"image {name} is in use", found=f"by lab {owner.name}: {owner.command}", hint=end)
