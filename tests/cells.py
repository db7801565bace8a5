"""Cells for tests of pools, in a module that their processes can import."""

import os
import signal
from pathlib import Path

from skblab.errors import MissingPrerequisite
from skblab.sweep.cell import CellOutcome, Scenario


def empty(_: Scenario, rules: tuple[str, ...]) -> CellOutcome:
    """Cost nothing."""
    return CellOutcome(stdout=" ".join(rules))


def with_image(scenario: Scenario, rules: tuple[str, ...]) -> CellOutcome:
    """Say which image it would run."""
    return CellOutcome(stdout=f"{scenario.spec.image_path} {' '.join(rules)}")


def deadly(scenario: Scenario, rules: tuple[str, ...]) -> CellOutcome:
    """Kill the process: for one cell always, for another the first time."""
    once = Path(scenario.directory) / "once"
    if rules == ("always",) or (rules == ("once",) and not once.exists()):
        once.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return empty(scenario, rules)


def refused(*_: object) -> CellOutcome:
    """Fail as a lab does that cannot be booted."""
    raise MissingPrerequisite("no kernel", found="anywhere", hint="build one")


def placed(_: Scenario, rules: tuple[str, ...]) -> CellOutcome:
    """Say on which processors its process may run."""
    del rules
    return CellOutcome(stdout=" ".join(map(str, sorted(os.sched_getaffinity(0)))))
