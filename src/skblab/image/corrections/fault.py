"""What a fault of a kernel's source is: how a source is known to have it, or not to have it, and what corrects it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

Outcome = Literal["applied", "not needed", "unknown"]
SHOWN = 60


@dataclass(frozen=True)
class Change:
    """A text in a file, and its replacement."""

    file: Path
    old: str
    new: str


@dataclass(frozen=True)
class Correction:
    """The changes that correct one fault. A source that has all the old texts has the fault.

    *since*: the first series that is searched for them, *until*: the first that is not. Without these, a correction of
    newer kernels would change the key of every older image, or the other way round.
    """

    changes: tuple[Change, ...]
    since: tuple[int, int] = (0, 0)
    until: tuple[int, int] = field(default=(1000, 0), repr=False)


@dataclass(frozen=True)
class Sign:
    """What shows that a source does not have a fault: texts that it has in a file, and texts that it lacks there."""

    why: str = field(repr=False)
    file: Path
    has: tuple[str, ...]
    lacks: tuple[str, ...] = ()
    since: tuple[int, int] = (0, 0)


@dataclass(frozen=True)
class Fault:
    """A fault. *does*: what happens in a kernel that has it. *variant*: the only one in which it matters.

    One of the corrections is applied, the first that fits; a sign is looked for before. The key of an image is made of
    the texts: those for reading (``repr=False``) are left out.
    """

    name: str = field(repr=False)
    does: str = field(repr=False)
    corrections: tuple[Correction, ...]
    absent: tuple[Sign, ...] = ()
    variant: str = field(default="", repr=False)

    def of_series(self, series: tuple[int, ...]) -> "Fault":
        """Return this fault with what is searched for in a kernel of *series*."""
        corrections = tuple(one for one in self.corrections if one.since <= series < one.until)
        absent = tuple(one for one in self.absent if one.since <= series)
        return Fault(self.name, self.does, corrections, absent, self.variant)


@dataclass(frozen=True)
class Finding:
    """What a source was found to be: corrected, without the fault, or unknown; *why*: the evidence."""

    fault: Fault
    outcome: Outcome
    why: str
    changes: tuple[Change, ...] = ()


class Texts:
    """The files of a source tree, each read once; a missing file is empty."""

    def __init__(self, tree: Path) -> None:
        self._tree = tree
        self._texts: dict[Path, str] = {}

    def __getitem__(self, file: Path) -> str:
        if file not in self._texts:
            path = self._tree / file
            self._texts[file] = path.read_text(errors="surrogateescape") if path.is_file() else ""
        return self._texts[file]


def judge(texts: Texts, fault: Fault) -> Finding:
    """Return whether a source has a fault, by its texts."""
    for sign in fault.absent:
        text = texts[sign.file]
        if all(one in text for one in sign.has) and not any(one in text for one in sign.lacks):
            return Finding(fault, "not needed", sign.why)
    for correction in fault.corrections:
        if all(_is_mended(texts, change) for change in correction.changes):
            return Finding(fault, "not needed", f"{_files(correction.changes)}: corrected in the source")
        if all(change.old in texts[change.file] for change in correction.changes):
            return Finding(fault, "applied", f"in {_files(correction.changes)}", correction.changes)
    return Finding(fault, "unknown", _closest(texts, fault))


def _is_mended(texts: Texts, change: Change) -> bool:
    """Return whether a text stands replaced: the new one may contain the old one, or the old one the new one."""
    text = texts[change.file]
    return change.new in text and change.old not in text.replace(change.new, "")


def _closest(texts: Texts, fault: Fault) -> str:
    """Return what the correction that fits best does not find."""
    missing = [
        [change for change in correction.changes if change.old not in texts[change.file]]
        for correction in fault.corrections
    ]
    change = min(missing, key=len)[0]
    if not texts[change.file]:
        return f"there is no {change.file}"
    return f"{change.file} does not have: {' '.join(change.old.split())[:SHOWN]} ..."


def _files(changes: Iterable[Change]) -> str:
    return ", ".join(dict.fromkeys(str(change.file) for change in changes))
