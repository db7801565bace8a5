"""A terminal that may go away while something is written to it."""

import os
import signal
from typing import TYPE_CHECKING, cast

from textual.drivers.linux_driver import LinuxDriver

if TYPE_CHECKING:
    from io import TextIOWrapper

    from textual.app import App


class Steady:
    """A file into which writing never fails. Where it would, the terminal is gone: the program is told by SIGHUP."""

    def __init__(self, file: "TextIOWrapper") -> None:
        self._file = file
        self._gone = False

    def write(self, text: str) -> None:
        """Write, if there is still somewhere to write to."""
        try:
            if not self._gone:
                self._file.write(text)
        except OSError:
            self._hang_up()

    def flush(self) -> None:
        """Flush, if there is still somewhere to flush to."""
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
        os.kill(os.getpid(), signal.SIGHUP)  # the kernel tells those alone whose controlling terminal it is


class SteadyDriver(LinuxDriver):
    """Textual's own driver, whose writing thread does not end with the terminal.

    It would, by EIO. Its queue is bounded (textual.drivers._writer_thread), and whoever puts one more text into the
    full one waits for ever: a closed terminal left the whole lab behind.
    """

    def __init__(
        self, app: "App[object]", *, debug: bool = False, mouse: bool = True, size: tuple[int, int] | None = None
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._file = cast("TextIOWrapper", Steady(cast("TextIOWrapper", self._file)))
