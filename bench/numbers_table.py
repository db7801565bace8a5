"""The benchmarks' common parts: a number with its target, and the printed table."""

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from skblab.image.image import Image


@dataclass(frozen=True)
class Number:
    """One measured number: median and worst of some runs, and its target (0: none)."""

    what: str
    median: float
    worst: float
    unit: str
    target: float = 0.0


def summary(what: str, values: list[float], unit: str, target: float = 0.0) -> Number:
    """Return a number from its runs."""
    return Number(what, round(statistics.median(values), 3), round(max(values), 3), unit, target)


def single(what: str, value: float, unit: str, target: float = 0.0) -> Number:
    """Return a number that was measured once, or computed from others."""
    return Number(what, round(value, 2), round(value, 2), unit, target)


@contextmanager
def stopwatch(times: list[float]) -> Iterator[None]:
    """Append the block's duration, in ms."""
    started = time.perf_counter()
    yield
    times.append((time.perf_counter() - started) * 1e3)


def report(image: Image, numbers: Iterable[Number], *, as_json: bool) -> None:
    """Print the numbers as they come."""
    if as_json:
        print(json.dumps([asdict(number) for number in numbers]))
        return
    print(f"{image.name}, {os.cpu_count()} cores, Linux {platform.release()}")
    print(f"{'':58} {'median':>9} {'worst':>9}  {'target':>7}")
    for number in numbers:
        target = f"{number.target:g}" if number.target else ""
        print(f"{number.what:58} {number.median:9.1f} {number.worst:9.1f}  {target:>7} {number.unit}", flush=True)
