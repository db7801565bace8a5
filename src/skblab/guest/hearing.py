"""Word of a kernel's complaints as they come."""

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from skblab.errors import CallbackFailed
from skblab.guest.complaint import Complaint
from skblab.guest.console import Console
from skblab.host.waiting import wait

SETTLED_S = 0.2  # without a word: then a report has come to its end


class ComplaintWatch:
    """Call *told* from a thread of its own with each complaint of a guest's kernel; close it, or leave it, to end that.

    Those that are there already come first, but for *skip* of them. When it is closed, *told* has had every complaint
    that had come by then; ``told`` counts them.
    """

    def __init__(self, console: Console, told: Callable[[Complaint], object], *, skip: int = 0) -> None:
        self._console = console
        self._tell = told
        self._skip = skip
        self.told = 0
        self._failed: Exception | None = None
        self._grown = console.watch()
        self._enough = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="skblab-complaints", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        pending = self._look(settled=False)
        while self._enough >= 0:  # *told* may close it
            ready = wait([self._grown, self._enough], SETTLED_S if pending else None)
            with contextlib.suppress(BlockingIOError):
                os.read(self._grown, 65536)
            pending = self._look(settled=not ready or self._enough in ready)
            if self._enough in ready:
                return

    def _look(self, *, settled: bool) -> bool:
        """Tell of those that are complete; return whether others are not yet."""
        complete, pending = self._console.complete_complaints(settled=settled)
        for complaint in complete[self._skip + self.told :]:
            self.told += 1
            try:
                self._tell(complaint)
            except Exception as error:  # noqa: BLE001 - raised by close()
                self._failed = self._failed or error
            if self._enough < 0:
                break
        return pending

    def close(self, *, raising: bool = True) -> None:
        """Tell no more. Safe to call twice.

        :raises CallbackFailed: *told* raised meanwhile; not where *raising* is false
        """
        if self._enough < 0:
            return
        os.eventfd_write(self._enough, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        os.close(self._grown)
        os.close(self._enough)
        self._enough = -1
        if self._failed and raising:
            raise CallbackFailed("a complaint", self._failed) from self._failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(raising=error is None)
