"""Report the kernel's complaints as they come."""

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

from skblab.errors import CallbackFailed, to_be_raised
from skblab.guest.complaint import Complaint
from skblab.guest.console import Console
from skblab.host.process import undisturbed
from skblab.host.waiting import wait

SETTLED_S = 0.2  # without output: then a report is finished


class ComplaintWatch:
    """Call *callback* with each complaint of a guest's kernel, on a thread of its own, until it is closed.

    Earlier complaints come first, without the first *skip*. After close(), *callback* has received every complaint that
    was printed before; ``reported`` counts them.
    """

    def __init__(self, console: Console, callback: Callable[[Complaint], object], *, skip: int = 0) -> None:
        self._console = console
        self._callback = callback
        self._skip = skip
        self.reported = 0
        self._failed: Exception | None = None
        self._grown = console.watch()
        self._enough = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._watch, name="skblab-complaints", daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        pending = self._look(settled=False)
        while self._enough >= 0:  # the callback may close it
            ready = wait([self._grown, self._enough], SETTLED_S if pending else None)
            with contextlib.suppress(BlockingIOError):
                os.read(self._grown, 65536)
            pending = self._look(settled=not ready or self._enough in ready)
            if self._enough in ready:
                return

    def _look(self, *, settled: bool) -> bool:
        """Report the finished complaints; return whether others are open."""
        complete, pending = self._console.complete_complaints(settled=settled)
        for complaint in complete[self._skip + self.reported :]:
            self.reported += 1
            try:
                self._callback(complaint)
            except BaseException as error:  # noqa: BLE001 - raised by close()
                self._failed = self._failed or to_be_raised(error)
            if self._enough < 0:
                break
        return pending

    def close(self, *, raising: bool = True) -> None:
        """Stop. Safe to call twice.

        :raises CallbackFailed: the callback raised, unless *raising* is false
        """
        if self._enough < 0:
            return
        os.eventfd_write(self._enough, 1)
        if self._thread is not threading.current_thread():
            self._thread.join()
        with undisturbed():
            if self._enough < 0:  # another thread was faster
                return
            enough, self._enough = self._enough, -1
            os.close(self._grown)
            os.close(enough)
        if self._failed and raising:
            raise CallbackFailed("a complaint", self._failed) from self._failed

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(raising=error is None)
