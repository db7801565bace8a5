"""What an interrupted sweep has done, so that it can go on: a file of JSON lines in the cache."""

import contextlib
import errno
import hashlib
import json
import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skblab import files
from skblab.errors import CannotWrite, MissingPrerequisite
from skblab.image.store import ANOTHER_CACHE, cache_dir
from skblab.scenario import digest
from skblab.sweep.cell import CellOutcome, Scenario

log = logging.getLogger(__name__)

SWEEPS = "sweeps"  # in the cache
FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


class Store:
    """The outcomes of one scenario, by their rules. They are written as they come.

    Where this user may not write to the cache, which may be another user's, they are not, and a warning says so.

    :param resume: keep what an interrupted sweep has done, if its run without a fault, and its programs, were the same

    :raises CannotWrite: another sweep of this scenario runs
    :raises MissingPrerequisite: the cache cannot be used; to *resume*, it must be
    """

    def __init__(self, scenario: Scenario, baseline: CellOutcome, *, resume: bool) -> None:
        self.path = cache_dir() / SWEEPS / f"{_key(scenario)}.jsonl"
        before = {"programs": _programs(scenario)}
        self.done: dict[tuple[str, ...], CellOutcome] = {}
        self._fd = -1
        try:
            directory()
            if resume:
                self.done = _read(self.path, baseline, before)
            self._fd = files.to_write(self.path, os.O_WRONLY)
        except (MissingPrerequisite, CannotWrite) as error:
            if resume or getattr(error.__cause__, "errno", 0) not in FORBIDDEN:
                raise
            log.warning("this sweep cannot be resumed if it is interrupted\n  %s", "\n  ".join(str(error).splitlines()))
            return
        self._write([], baseline, **before)
        for rules, outcome in self.done.items():
            self._write(list(rules), outcome)

    def add(self, rules: tuple[str, ...], outcome: CellOutcome) -> None:
        """Keep an outcome."""
        self.done[rules] = outcome
        self._write(list(rules), outcome)

    def _write(self, rules: list[str], outcome: CellOutcome, **more: object) -> None:
        if self._fd < 0:
            return
        left = memoryview(json.dumps({"rules": rules, "outcome": outcome.fields(), **more}).encode() + b"\n")
        try:
            while left:
                left = left[os.write(self._fd, left) :]
        except OSError as error:
            raise files.cannot_write(self.path, error) from error

    def close(self, *, forget: bool) -> None:
        """Close the file; *forget*: the sweep is complete, and nothing has to go on."""
        if self._fd < 0:
            return
        if forget:
            self.path.unlink(missing_ok=True)
        os.close(self._fd)


def directory() -> Path:
    """Return the directory of interrupted sweeps, made if it is missing."""
    return files.directory(cache_dir() / SWEEPS, 0o700, what="the directory of interrupted sweeps", hint=ANOTHER_CACHE)


def _key(scenario: Scenario) -> str:
    return hashlib.sha256(repr(scenario).encode()).hexdigest()[:16]


def _programs(scenario: Scenario) -> dict[str, str]:
    """Return the digests of the files that the client's words and the servers' name, as this machine has them."""
    named = {*scenario.client}
    for line in scenario.spec.commands:
        with contextlib.suppress(ValueError):  # no closing quotation: as the guest's shell sees it
            named.update(shlex.split(line))
    found = {}
    for word in sorted(named):
        path = Path(scenario.directory, word)
        with contextlib.suppress(OSError, ValueError):  # a directory, an option, a text that is too long
            if path.is_file():
                found[word] = digest(path.read_bytes())
    return found


def _read(path: Path, baseline: CellOutcome, before: Mapping[str, object]) -> dict[tuple[str, ...], CellOutcome]:
    """Return what a file has; the last line may be cut short. Nothing, if it began with another baseline.

    :param before: what stands beside the baseline
    """
    done: dict[tuple[str, ...], CellOutcome] = {}
    with contextlib.suppress(FileNotFoundError):
        for line in path.read_text().splitlines():
            try:
                said: dict[str, Any] = json.loads(line)
                if not said["rules"] and {key: said[key] for key in before} != before:
                    return {}
                done[tuple(said["rules"])] = CellOutcome.read(said["outcome"])
            except (ValueError, KeyError, TypeError):
                break
    return done if done.pop((), None) == baseline else {}
