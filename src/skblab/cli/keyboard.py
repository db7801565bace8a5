"""Lines that a person types at a prompt of skblab; Ctrl-C interrupts at any time."""

import sys

from skblab.host.signals import wakeup
from skblab.host.waiting import wait


def read_line() -> str:
    """Wait for a line on standard input and return it."""
    with wakeup() as woken:
        wait([sys.stdin, woken])
        return sys.stdin.readline()
