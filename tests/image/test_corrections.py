"""What stands in the way in User Mode Linux is corrected in the kernels that are booted here."""

from pathlib import Path

import pytest

from skblab.image.corrections import CORRECTIONS, Correction
from skblab.image.image import SOURCE
from skblab.image.recipe import SERIES
from skblab.image.store import find_image

# An image keeps no copy of what makes constants alone, but the constants.
CONSTANTS = {"user-offsets.c": (Path("include/generated/user_constants.h"), "/* 12288 / sizeof(unsigned long) */")}


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda one: one.file.name)
def test_it_is_in_a_kernel(correction: Correction) -> None:
    """A source that has changed a little has nothing to be replaced, and is built as it is: without a word."""
    file, text = CONSTANTS.get(correction.file.name, (correction.file, correction.new))
    copies = [find_image(series).path / SOURCE / "obj" / file for series in SERIES]
    assert any(copy.is_file() and text in copy.read_text() for copy in copies)
