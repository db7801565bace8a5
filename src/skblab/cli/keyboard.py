"""What a person types at a prompt of ours."""

import os
import select
import signal
import sys


def read_line() -> str:
    """Read up to Enter; Ctrl-C is heard whenever it comes.

    A signal between Python's last look at its signals and the ``read`` of a terminal would not be heard before the
    next key. Its byte in a pipe is not lost (signal.set_wakeup_fd).
    """
    woken, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    before = signal.set_wakeup_fd(waker)
    try:
        select.select([sys.stdin, woken], [], [])
        return sys.stdin.readline()
    finally:
        signal.set_wakeup_fd(before)
        os.close(woken)
        os.close(waker)
