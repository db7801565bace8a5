"""What a person types: lines at a prompt of ours, and Ctrl-C whenever it comes.

A signal between Python's last look at its signals and the system call that waits would not be heard before that ends.
Its byte in a pipe is not lost (signal.set_wakeup_fd).
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

from skblab.host.waiting import wait


@contextlib.contextmanager
def hearing() -> Iterator[int]:
    """Yield a descriptor to wait for with others: it can be read when a signal has come."""
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(waker)
    try:
        yield woken
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(waker)


def read_line() -> str:
    """Read up to Enter."""
    with hearing() as woken:
        wait([sys.stdin, woken])
        return sys.stdin.readline()
