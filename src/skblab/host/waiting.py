"""Wait for descriptors: no other module does. By poll(2), because select(2) takes none above 1,023.

A part of the lab's first process (lab_init.py), so it imports little.
"""

from __future__ import annotations

import errno
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol, TypeVar

    class Waitable(Protocol):
        """An object with a descriptor."""

        def fileno(self) -> int:
            """Return the descriptor."""

    Watched = TypeVar("Watched", bound="int | Waitable")

LONGEST_MS = (1 << 31) - 1


class Queue:
    """Where one of several threads waits for the same descriptor: what comes wakes one alone, the first that waits.

    By EPOLLEXCLUSIVE of epoll_ctl(2).

    :param shared: the descriptor
    :param own: another, of this thread alone
    """

    def __init__(self, shared: int, own: int) -> None:
        self._shared = shared
        self._own = own
        self._epoll = select.epoll()
        self._epoll.register(own, select.EPOLLIN)
        self._stand()

    def wait(self) -> bool:
        """Wait for both; return whether the thread's own is readable."""
        return self._own in dict(self._epoll.poll(-1, 2))

    def step_back(self) -> None:
        """Wait behind the threads that have come meanwhile."""
        self._epoll.unregister(self._shared)
        self._stand()

    def leave(self) -> None:
        """Wait for the thread's own descriptor alone; the shared one may be closed."""
        try:
            self._epoll.unregister(self._shared)
        except OSError:
            return

    def close(self) -> None:
        """Close it; nobody waits there."""
        self._epoll.close()

    def _stand(self) -> None:
        self._epoll.register(self._shared, select.EPOLLIN | select.EPOLLEXCLUSIVE)


def wait(reads: Iterable[Watched], timeout_s: float | None = None, writes: Iterable[Watched] = ()) -> list[Watched]:
    """Return those of *reads* that are readable or at end of file, and those of *writes* that are writable.

    :param timeout_s: return an empty list after this time, rounded up to ms. None: wait without limit
    :raises OSError: one of them is closed
    """
    poller = select.poll()
    watched: dict[int, Watched] = {}
    for ones, events in ((reads, select.POLLIN), (writes, select.POLLOUT)):
        for one in ones:
            descriptor = one if isinstance(one, int) else one.fileno()
            watched[descriptor] = one
            poller.register(descriptor, events)
    ready = poller.poll(None if timeout_s is None else min(-int(-timeout_s * 1000 // 1), LONGEST_MS))
    if any(events & select.POLLNVAL for _, events in ready):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    return [watched[descriptor] for descriptor, _ in ready]
