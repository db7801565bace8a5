"""The faults of User Mode Linux are corrected in the kernels that are booted here."""

from pathlib import Path

import pytest

from skblab.image.corrections import CORRECTIONS, Correction
from skblab.image.image import SOURCE
from skblab.image.recipe import SERIES
from skblab.image.store import find_image

# An image keeps constants, but not the files that only generate them.
CONSTANTS = {"user-offsets.c": (Path("include/generated/user_constants.h"), "/* 12288 / sizeof(unsigned long) */")}


@pytest.mark.parametrize("correction", CORRECTIONS, ids=lambda one: one.file.name)
def test_it_is_in_a_kernel(correction: Correction) -> None:
    """A source with a small change does not match, and is silently built unchanged."""
    file, text = CONSTANTS.get(correction.file.name, (correction.file, correction.new))
    copies = [find_image(series).path / SOURCE / "obj" / file for series in SERIES]
    assert any(copy.is_file() and text in copy.read_text() for copy in copies)
