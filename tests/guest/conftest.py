"""What the tests of guests share: a module that makes its kernel complain."""

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from skblab.image.image import Image
from skblab.image.module import build_own

SOURCE = Path(__file__).with_name("complains.c")


@pytest.fixture(scope="session")
def complains(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Image], str]:
    """Builds the module for an image, once."""

    @functools.cache
    def build(directory: Path, image: Path) -> str:
        directory.mkdir(exist_ok=True)
        (directory / "Kbuild").write_text("obj-m := complains.o\n")
        (directory / SOURCE.name).write_text(SOURCE.read_text())
        return str(build_own(image, directory)[0])

    root = tmp_path_factory.mktemp("complains")
    return lambda image: build(root / image.name, image.path)
