"""Stops of the whole kernel, printed for a person: the packet and the backtrace; Enter resumes the kernel."""

import sys
from typing import TextIO

from skblab.cli.keyboard import read_line
from skblab.event import Stop
from skblab.session import Watcher

SHOWN_FRAMES = 12


class StopsShown(Watcher):
    """Prints each stop of the kernel; without a terminal, the kernel is resumed at once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def stopped(self, stop: Stop) -> None:
        """Print the packet's summary and the backtrace; on a terminal, wait for Enter."""
        if stop.packet:
            print(stop.packet.summary(), file=self._out)
        for number, (function, file, line) in enumerate(stop.frames[:SHOWN_FRAMES]):
            print(f"  #{number:<2} {function}()  {file}:{line}", file=self._out)
        if len(stop.frames) > SHOWN_FRAMES:
            more = len(stop.frames) - SHOWN_FRAMES
            print(f"  ... {more} more, down to {stop.frames[-1][0]}()", file=self._out)
        if sys.stdin.isatty() and self._out.isatty():
            self._out.write("the whole kernel is stopped; Enter resumes it ")
            self._out.flush()
            read_line()

    def resumed(self, stopped_s: float) -> None:
        """Print how long the kernel was stopped."""
        print(f"it was stopped for {stopped_s:.3f} s", file=self._out)
