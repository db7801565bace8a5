"""Signals that come while something is waited for.

A signal between Python's last look at its signals and the system call that waits would not be noticed before that ends.
Its byte in a pipe is not lost (signal.set_wakeup_fd).
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def wakeup() -> Iterator[int]:
    """Yield a descriptor to wait for with others: it can be read when a signal has come.

    Python's signal handlers run in the main thread alone: in another thread it can never be read.
    """
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    is_main = threading.current_thread() is threading.main_thread()
    before = signal.set_wakeup_fd(waker) if is_main else -1
    try:
        yield woken
    finally:
        if is_main:
            signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(waker)
