"""A terminal driver that survives the terminal's end during a write."""

import os
import signal
from typing import TYPE_CHECKING, cast

from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from io import TextIOWrapper

    from textual.app import App


class Steady:
    """A file whose writes never raise. If a write fails, the terminal is gone, and the program gets SIGHUP."""

    def __init__(self, file: "TextIOWrapper") -> None:
        self._file = file
        self._gone = False

    def write(self, text: str) -> None:
        """Write, if the terminal is still there."""
        try:
            if not self._gone:
                self._file.write(text)
        except OSError:
            self._hang_up()

    def flush(self) -> None:
        """Flush, if the terminal is still there."""
        try:
            if not self._gone:
                self._file.flush()
        except OSError:
            self._hang_up()

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._file.fileno()

    def _hang_up(self) -> None:
        self._gone = True
        os.kill(os.getpid(), signal.SIGHUP)  # the kernel sends it only to processes of this controlling terminal


class SteadyDriver(LinuxDriver):
    """Textual's driver with a writing thread that survives the terminal's end.

    Textual's thread ends by EIO. Its queue is bounded (textual.drivers._writer_thread), and a writer to the full queue
    then waits for ever: after its terminal was closed, the program and its lab never ended.
    """

    def __init__(
        self, app: "App[object]", *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._file = cast("TextIOWrapper", Steady(cast("TextIOWrapper", self._file)))
