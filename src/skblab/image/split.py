"""The code that the compiler has split off a function: it is no function of the index, but an address may lie in it."""

import bisect
import functools
from pathlib import Path

from skblab.errors import SkblabError
from skblab.image.debuginfo import PARTS, code_symbols
from skblab.image.image import Image

Part = tuple[int, int, str]
"""First and end address, and the name of the function that it was split off."""


def name_at(image: Image, address: int) -> str:
    """Return the name of the function whose code has an address, also where that was split off.

    "" if there is no such function, or no nm to ask.
    """
    if found := image.functions.at(address):
        return found.name
    try:
        parts = _parts(image.kernel)
    except SkblabError:
        return ""
    place = bisect.bisect_right(parts, address, key=lambda part: part[0]) - 1
    return parts[place][2] if place >= 0 and address < parts[place][1] else ""


@functools.lru_cache(maxsize=8)
def _parts(kernel: Path) -> list[Part]:
    symbols = (symbol for symbol in code_symbols(kernel) if PARTS.search(symbol[0]))
    return sorted((first, first + size, name.partition(".")[0]) for name, first, size in symbols)
