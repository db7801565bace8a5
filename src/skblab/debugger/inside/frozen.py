"""Keep the length of each stop off the guest's clock (``LabSpec(clock="frozen")``).

``os_stopped_ns`` of the kernel is taken off the host's clock (image/corrections/stopped.py). It is written before the
kernel runs again: afterwards, the kernel could have read a clock that has jumped.
"""

import os
import time

import gdb

from skblab.debugger.inside import wire

RESUMING = ("continue", "step", "next", "stepi", "nexti", "finish", "until", "advance", "jump", "signal", "detach")


class _Stop:
    at_ns = 0


def begin() -> None:
    """Begin, with a kernel that gdb has just stopped, if the lab wants that."""
    if os.environ.get(wire.CLOCK) != wire.FROZEN:
        return
    _stopped()
    gdb.events.stop.connect(_stopped)
    for command in RESUMING:
        gdb.execute(f"define hook-{command}\npython from skblab.debugger.inside import frozen; frozen.resumes()\nend")


def _stopped(_event: object = None) -> None:
    _Stop.at_ns = time.monotonic_ns()


def resumes() -> None:
    """Take the length of the stop off the guest's clock; gdb calls this before a command that resumes the kernel."""
    length_ns = time.monotonic_ns() - _Stop.at_ns
    if _Stop.at_ns and gdb.selected_inferior().pid:
        gdb.parse_and_eval(f"os_stopped_ns += {length_ns}")
        _Stop.at_ns = 0
