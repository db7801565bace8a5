"""What a program writes, kept in a file; on its way there it may be shown, too."""

import contextlib
import errno
import fcntl
import os
import re
import struct
import tempfile
import termios
import threading
from types import TracebackType
from typing import Self

from skblab.host.waiting import wait

CHUNK_BYTES = 1 << 16
LAST_WORDS_S = 1.0  # for a terminal to pass them on, after its program's end
TERMINAL = struct.pack("HHHH", 24, 80, 0, 0)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x07\x0b\x0c\x0e-\x1f]")


def open_terminal() -> tuple[int, int]:
    """Return both ends of a terminal of 80 columns and 24 lines, ours first."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, TERMINAL)
    return ours, theirs


class Kept:
    """Keeps what is written to ``fileno()``; use in a ``with``.

    :param shown: a descriptor to which it is written at once, too; None: it is not
    :param terminal: the program writes to a terminal; its control characters are not kept
    """

    def __init__(self, shown: int | None = None, *, terminal: bool = False) -> None:
        self._shown = shown
        self._terminal = terminal
        self._stack = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(tempfile.TemporaryFile())
            self._to = self._file.fileno()
            if self._shown is not None or self._terminal:
                self._from, self._to = open_terminal() if self._terminal else os.pipe2(os.O_CLOEXEC)
                stack.callback(os.close, self._from)
                self._end = os.eventfd(0, os.EFD_CLOEXEC)
                stack.callback(os.close, self._end)
                os.set_blocking(self._from, False)
                self._thread = threading.Thread(target=self._copy, name="skblab-output", daemon=True)
                self._thread.start()
                stack.callback(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def fileno(self) -> int:
        """Return the descriptor to write to."""
        return self._to

    def text(self) -> str:
        """Return what has been written, after the writer's end; what others write later is not kept."""
        self._finish()
        self._file.seek(0)
        text = self._file.read().decode(errors="replace")
        return CONTROL.sub("", text).replace("\r\n", "\n") if self._terminal else text

    def _finish(self) -> None:
        if self._thread:
            os.close(self._to)
            os.eventfd_write(self._end, 1)
            self._thread.join()
            self._thread = None

    def _copy(self) -> None:
        while self._end not in wait([self._from, self._end], None):
            self._take()
        while wait([self._from], LAST_WORDS_S) and self._take():  # its last words, until the last writer's end
            pass

    def _take(self) -> bool:
        """Take what has been written; return whether there may be more."""
        try:
            data = os.read(self._from, CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:  # of a terminal without a writer
                raise
            return False
        self._file.write(data)
        if self._shown is not None:
            _write(self._shown, data)
        return bool(data)


def _write(to: int, data: bytes) -> None:
    """Write everything, unless nobody reads it any more."""
    left = memoryview(data)
    with contextlib.suppress(OSError):
        while left:
            left = left[os.write(to, left) :]
