"""What a person types: lines at a prompt of ours, and Ctrl-C whenever it comes."""

import sys

from skblab.host.signals import wakeup
from skblab.host.waiting import wait


def read_line() -> str:
    """Read up to Enter."""
    with wakeup() as woken:
        wait([sys.stdin, woken])
        return sys.stdin.readline()
