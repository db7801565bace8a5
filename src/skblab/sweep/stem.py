"""Where cells begin: a lab whose servers are up is booted once, and each cell is a branch of it (``Lab.branch()``).

In a process that runs one cell after another. To boot a guest, and to start its servers, is most of what a cell costs.
The first cell of a specification boots a lab of its own. It is run again in the first branch, and only where its
outcome is the same, to the byte, are there others.
"""

import contextlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from skblab.branch import CannotBranch
from skblab.errors import SkblabError
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec

log = logging.getLogger(__name__)

MOST_STEMS = 4  # each has a guest's memory
MOST_KNOWN = 64
MOST_GROWN = 3

T = TypeVar("T")
Cell = Callable[[Lab], Any]


@dataclass
class _Known:
    """What is known of a specification.

    :param first: its first cell, and that one's outcome, until they are compared
    :param grows: how many more stems it may have: more than one, because a stem may be killed
    """

    first: tuple[Cell, Any] | None
    stem: Lab | None = None
    grows: int = MOST_GROWN


class _Kept:
    """What a thread keeps: what is known of each specification, the latest last."""

    def __init__(self) -> None:
        self.known: OrderedDict[LabSpec, _Known] = OrderedDict()
        self.in_use = threading.Lock()
        self.end = threading.Timer(0, self.drop)
        self.is_over = False

    def drop(self) -> None:
        """End all stems; from another thread, too."""
        with self.in_use:
            self.is_over = True
            for one in self.known.values():
                _end(one)
            self.known.clear()

    def drop_in(self, seconds: float) -> None:
        """End them later, if they are not used again."""
        self.end = threading.Timer(seconds, self.drop)
        self.end.daemon = True
        self.end.start()


class _Here(threading.local):
    """Of a thread: what it uses, or None, if every cell boots a guest of its own; what lingers."""

    kept: _Kept | None = None
    lingers: _Kept | None = None


_here = _Here()


def keep() -> None:
    """Keep the labs of which this thread's cells are branches, until ``drop()``."""
    _here.kept = _here.kept or _Kept()


def drop() -> None:
    """End them, and keep none any more."""
    kept, _here.kept = _here.kept, None
    if kept:
        kept.drop()


@contextlib.contextmanager
def kept(linger_s: float = 0.0) -> Iterator[None]:
    """Keep them meanwhile, and for a while longer: this thread may come back."""
    if not linger_s:
        keep()
        try:
            yield
        finally:
            drop()
        return
    before = _here.lingers or _Kept()
    before.end.cancel()
    with before.in_use:
        _here.lingers = _here.kept = _Kept() if before.is_over else before
        try:
            yield
        finally:
            _here.kept = None
            _here.lingers.drop_in(linger_s)


def run(spec: LabSpec, opened: Image, cell: Callable[[Lab], T]) -> T:
    """Run a cell in a lab of its own, and return what it returns.

    :param opened: the specification's image
    :raises SkblabError: the lab cannot be booted
    """
    if _here.kept is None:
        return _in_its_own(spec, opened, cell)
    known = _here.kept.known.get(spec)
    if known is None:
        outcome = _in_its_own(spec, opened, cell)
        _remember(spec, _Known((cell, outcome)))
        return outcome
    _here.kept.known.move_to_end(spec)
    with contextlib.ExitStack() as stack:
        lab = _branch(spec, opened, known, stack)
        if lab:
            return cell(lab)
    return _in_its_own(spec, opened, cell)


def _in_its_own(spec: LabSpec, opened: Image, cell: Callable[[Lab], T]) -> T:
    with spec.start(opened=opened) as lab:
        return cell(lab)


def _remember(spec: LabSpec, known: _Known) -> None:
    assert _here.kept
    _here.kept.known[spec] = known
    if len(_here.kept.known) > MOST_KNOWN:
        _end(_here.kept.known.popitem(last=False)[1])


def _branch(spec: LabSpec, opened: Image, known: _Known, stack: contextlib.ExitStack) -> Lab | None:
    """Return a branch, whose end is on *stack*; or None, if none would be sound."""
    try:
        stem = known.stem or _grow(spec, opened, known)
        return stack.enter_context(stem.branch()) if stem else None
    except SkblabError as error:
        log.warning("a cell boots a guest of its own: %s", error.what)
        if isinstance(error, CannotBranch):  # else it is gone, and another may grow
            known.grows = 0
        _end(known)
        return None


def _grow(spec: LabSpec, opened: Image, known: _Known) -> Lab | None:
    """Boot a specification's stem, and try it; return it, or None where its branches are not like labs of their own."""
    if not known.grows:
        return None
    known.grows -= 1
    _make_room()
    known.stem = stem = spec.start(opened=opened)
    stem.__enter__()
    if known.first is None:
        return stem
    first, outcome = known.first
    with stem.branch() as lab:
        is_same = first(lab) == outcome
    if is_same:
        known.first = None
        return stem
    log.warning("a cell in a branch of its lab is another: every cell boots a guest of its own")
    known.grows = 0
    _end(known)
    return None


def _make_room() -> None:
    assert _here.kept
    stems = [one for one in _here.kept.known.values() if one.stem]
    for one in stems[: max(len(stems) + 1 - MOST_STEMS, 0)]:
        _end(one)


def _end(known: _Known) -> None:
    stem, known.stem = known.stem, None
    if stem:
        with contextlib.suppress(SkblabError):
            stem.close()
