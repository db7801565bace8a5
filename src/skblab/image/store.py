"""Where images are kept, and which one a lab takes."""

import os
import shutil
from pathlib import Path

from skblab.errors import ImageDamaged, ImageMissing, UsageError
from skblab.image.image import MANIFEST, Image
from skblab.image.recipe import DEFAULT_SERIES, recipe_for


def cache_dir() -> Path:
    """Return the cache: ``$SKBLAB_CACHE``, else ``$XDG_CACHE_HOME/skblab``, else ``~/.cache/skblab``."""
    if own := os.environ.get("SKBLAB_CACHE"):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "skblab"


def images_dir() -> Path:
    """Return the directory of images, made where it is missing, for this user alone."""
    path = cache_dir() / "images"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def builds_dir() -> Path:
    """Return where builds of developers' trees are kept between one and the next, made where it is missing."""
    path = cache_dir() / "builds"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    return path


def list_images() -> tuple[list[Image], list[ImageDamaged]]:
    """Return the images, first the one built or asked for last, and what is wrong with the damaged ones."""
    images, damaged = [], []
    directories = [path for path in images_dir().iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(directories, key=_wanted_ns, reverse=True):
        try:
            images.append(Image.open(path))
        except ImageMissing:
            damaged.append(
                ImageDamaged(f"image {path.name} is damaged: no {MANIFEST}", mend=f"skblab image rm {path.name}")
            )
        except ImageDamaged as error:
            damaged.append(error)
    return images, damaged


def _wanted_ns(path: Path) -> int:
    manifest = path / MANIFEST
    return manifest.stat().st_mtime_ns if manifest.exists() else 0


def find_image(series: str = DEFAULT_SERIES, variant: str = "default") -> Image:
    """Return the image of *series* and *variant*, built by this skblab's recipe, that was built or asked for last.

    :raises ImageMissing: there is none; the sentence says how to build it
    :raises ImageDamaged: there is one, but it is damaged
    """
    recipe = recipe_for(variant)
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
    raise ImageMissing(f"no image of Linux {series}, variant {variant}", found=older, mend=build)


def open_named(name: str) -> Image:
    """Return the image of a name in the store, or of a directory.

    :raises ImageMissing: there is none of that name
    """
    return Image.open(Path(name) if "/" in name else images_dir() / name)


def remove_builds() -> None:
    """Remove what is kept of builds; one that is going on fails."""
    shutil.rmtree(builds_dir())


def remove_image(name: str) -> None:
    """Remove an image, damaged or not; it is out of sight at once.

    :raises UsageError: there is none of that name
    """
    path = images_dir() / name
    if not name or "/" in name or name.startswith(".") or not path.is_dir():
        raise UsageError(f"no image named {name}", mend="skblab image ls")
    hidden = path.with_name(f".removed-{path.name}-{os.getpid()}")
    path.rename(hidden)
    shutil.rmtree(hidden)
