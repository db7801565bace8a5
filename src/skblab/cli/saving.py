"""``--save``: a run in a file, which ``skblab replay`` does again."""

import argparse
import dataclasses
import random
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from skblab import files
from skblab.errors import UsageError
from skblab.line import MOST_NUMBER
from skblab.rule import Occurrence, Rule


def add_save_option(parser: argparse.ArgumentParser) -> None:
    """Add the option that names the file."""
    parser.add_argument("--save", type=files.typed, metavar="FILE",
                        help="save what was run, and what came of it, to a new file, for skblab replay; to "
                        "test_NAME.py, as a test for pytest")  # fmt: skip


def check(arguments: argparse.Namespace) -> None:
    """Refuse, before anything runs, what cannot be saved.

    :raises UsageError: the lab is one that is up, or the file's name is wrong
    :raises CannotWrite: there is such a file, or it cannot be written
    """
    path: Path | None = arguments.save
    if path is None:
        return
    if getattr(arguments, "lab", None):
        raise UsageError(
            f"lab {arguments.lab} is up already: what was done in it before would not be in the file",
            hint="--save without --lab",
        )
    from skblab.saved import check_new  # noqa: PLC0415

    check_new(path)


def pinned(rules: Sequence[Rule], arguments: argparse.Namespace) -> list[Rule]:
    """Return rules with a seed for what they do at random, if ``--save`` is given.

    In virtual time the lab's seed determines it.
    """
    if arguments.save is None or arguments.time == "virtual":
        return [*rules]
    return [dataclasses.replace(rule, occurrence=_seeded(rule)) for rule in rules]


def _seeded(rule: Rule) -> Occurrence:
    occurrence, chosen = rule.occurrence, rule.occurrence.percent
    if occurrence.seed or not (chosen or rule.jitter_ns or rule.order == "random"):
        return occurrence
    if not chosen and occurrence != Occurrence():
        print(f"skblab: {rule} has another random seed on each replay", file=sys.stderr)
        return occurrence
    return dataclasses.replace(occurrence, percent=chosen or 100, seed=random.SystemRandom().randint(1, MOST_NUMBER))


def tell(path: Path) -> None:
    """Say that the file is there."""
    how = shlex.join(["pytest", str(path)] if path.suffix == ".py" else ["skblab", "replay", str(path)])
    print(f"saved: {how} does it again", file=sys.stderr)
