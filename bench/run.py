"""Measure what docs/reference/numbers.md promises, in one run: ``make bench``, or ``python bench/run.py --json``."""

import argparse
import itertools

import boot
import delay
import follow
import userspace
from numbers_table import report

import agent
import virtual
from skblab.image.store import find_image


def main() -> None:
    """Print the numbers as they come."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--series", default="6.12")
    parser.add_argument("--json", action="store_true")
    parts = {
        "boot": boot.measure, "agent": agent.measure, "delay": delay.measure, "follow": follow.measure,
        "userspace": userspace.measure, "virtual": virtual.measure,
    }  # fmt: skip
    parser.add_argument("--only", choices=tuple(parts), help="a part of it")
    arguments = parser.parse_args()
    image = find_image(arguments.series)
    chosen = [part for name, part in parts.items() if arguments.only in {None, name}]
    report(image, itertools.chain.from_iterable(part(image) for part in chosen), as_json=arguments.json)


main()
