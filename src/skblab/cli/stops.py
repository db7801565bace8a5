"""Stops of the whole kernel, shown to a person: the packet, the way there, and Enter lets it go on."""

import sys
from typing import TextIO

from skblab.cli.keyboard import read_line
from skblab.event import Stop
from skblab.session import Watcher

SHOWN_FRAMES = 12


class StopsShown(Watcher):
    """Prints each stop of the kernel; off a terminal the kernel goes on at once."""

    def __init__(self, out: TextIO) -> None:
        self._out = out

    def stopped(self, stop: Stop) -> None:
        """Print the packet in words and the way to the stop; on a terminal, wait for Enter."""
        if stop.packet:
            print(stop.packet.summary(), file=self._out)
        for number, (function, file, line) in enumerate(stop.frames[:SHOWN_FRAMES]):
            print(f"  #{number:<2} {function}()  {file}:{line}", file=self._out)
        if len(stop.frames) > SHOWN_FRAMES:
            more = len(stop.frames) - SHOWN_FRAMES
            print(f"  ... {more} more, down to {stop.frames[-1][0]}()", file=self._out)
        if sys.stdin.isatty() and self._out.isatty():
            self._out.write("the whole kernel stands still; Enter lets it go ")
            self._out.flush()
            read_line()

    def resumed(self, stood_s: float) -> None:
        """Print for how long it stood still."""
        print(f"it stood still for {stood_s:.3f} s", file=self._out)
