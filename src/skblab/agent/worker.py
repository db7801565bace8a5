"""A thread that works on what the agent's events bring."""

import collections
import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from skblab.agent.link import Link
from skblab.host.process import interruptible

Item = TypeVar("Item")


class Worker(Generic[Item]):
    """A thread of its own, for one item after another.

    While it has none it reads the agent's events itself: to have an item handed over by the reading thread costs more
    than most work. While it works, the reading thread reads.

    :param work: called with each item
    """

    def __init__(self, link: Link, name: str, work: Callable[[Item], None]) -> None:
        self._link = link
        self._work = work
        self._items: collections.deque[Item] = collections.deque()
        self._ended = False
        self._sleeps = False  # it may: who adds an item rings
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)  # rung by other threads; closed by this one:
        self._ringing = threading.Lock()
        self._is_closed = False
        try:
            self._queue = link.queue(self._bell)
        except BaseException:
            os.close(self._bell)
            raise
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_current(self) -> bool:
        """Whether this is the thread."""
        return self._thread.ident == threading.get_ident()

    def put(self, item: Item) -> bool:
        """Add an item; return False if nobody works on it: the thread has ended."""
        with self._ringing:
            if self._is_closed:
                return False
            self._items.append(item)
            if self._sleeps:
                os.eventfd_write(self._bell, 1)
        return True

    def end(self, timeout_s: float) -> bool:
        """Finish the items that are there, and end; return whether that was done within the time. Safe to call twice.

        On the thread itself it ends once the item is done.
        """
        self._ended = True
        self._ring()
        if not self.is_current:
            with interruptible():
                self._thread.join(timeout_s)
        return self.is_current or not self._thread.is_alive()

    def _run(self) -> None:
        while not self._ended:
            self._wait()
            while self._items:
                self._work(self._items.popleft())
        if self._queue:
            self._queue.close()
            self._link.listen()  # the doorbell may have woken this thread just now
        with self._ringing:
            self._is_closed = True
            os.close(self._bell)
        while self._items:  # from before
            self._work(self._items.popleft())

    def _ring(self) -> None:
        with self._ringing:
            if not self._is_closed:
                os.eventfd_write(self._bell, 1)

    def _wait(self) -> None:
        """Wait until another thread has rung, or events were read."""
        if self._queue and not self._link.listen():
            self._queue.leave()
        self._sleeps = True
        try:
            if self._items or self._ended:
                return
            if self._queue is None or self._queue.wait():
                os.eventfd_read(self._bell)
                return
        finally:
            self._sleeps = False
        self._link.listen(silence=False)  # an item that has come goes first
