"""What a program writes, kept in a file; on its way there it may be shown, too."""

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import struct
import tempfile
import termios
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from skblab.errors import MissingPrerequisite
from skblab.files import cannot_write
from skblab.host.link import libc
from skblab.host.waiting import wait

CHUNK_BYTES = 1 << 16
IN_MODIFY = 2  # sys/inotify.h
LAST_WORDS_S = 1.0  # for a terminal to pass them on, after its program's end
TERMINAL = struct.pack("HHHH", 24, 80, 0, 0)
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|[\x00-\x07\x0b\x0c\x0e-\x1f]")


def open_terminal() -> tuple[int, int]:
    """Return both ends of a terminal of 80 columns and 24 lines, ours first."""
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, TERMINAL)
    return ours, theirs


def watch(file: int, what: str) -> int:
    """Return a descriptor that becomes readable when a file is written to (inotify(7)); the caller closes it.

    :raises MissingPrerequisite: this user may have no more inotify instances
    """
    descriptor = int(libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
    if descriptor < 0:
        raise MissingPrerequisite(
            f"{what} cannot be watched", found=os.strerror(ctypes.get_errno()),
            hint="sysctl -w fs.inotify.max_user_instances=1024   (as root)",
        )  # fmt: skip
    libc.inotify_add_watch(descriptor, f"/proc/self/fd/{file}".encode(), IN_MODIFY)
    return descriptor


class Kept:
    """Keeps what is written to ``fileno()``, a file or a terminal; use in a ``with``.

    Shown or not, the program writes to the same: in virtual time it runs the same, too.

    :param shown: a descriptor to which it is written at once, too; None: it is not
    :param terminal: the program writes to a terminal; its control characters are not kept

    Entering raises MissingPrerequisite.
    """

    def __init__(self, shown: int | None = None, *, terminal: bool = False) -> None:
        self._shown = shown
        self._terminal = terminal
        self._shown_bytes = 0
        self._refused: OSError | None = None
        self._lost: OSError | None = None  # why something that a terminal has passed on is not kept
        self._stack = contextlib.ExitStack()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as stack:
            self._file = stack.enter_context(tempfile.TemporaryFile(buffering=0))
            self._to = self._from = self._file.fileno()
            if self._terminal:
                self._from, self._to = open_terminal()
                stack.callback(os.close, self._from)
                os.set_blocking(self._from, False)
            if self._terminal or self._shown is not None:
                self._news = self._from
                if not self._terminal:
                    self._news = watch(self._from, "the command's output")
                    stack.callback(os.close, self._news)
                self._end = os.eventfd(0, os.EFD_CLOEXEC)
                stack.callback(os.close, self._end)
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
        """Return what has been written, after the writer's end; what others write later is not kept.

        :raises CannotWrite: it could not be shown, or kept whole
        """
        self._finish()
        if self._refused:
            raise cannot_write("what the command says", self._refused)
        self._check_room()
        self._file.seek(0)
        text = self._file.read().decode(errors="backslashreplace")  # else other bytes may be the same text
        return CONTROL.sub("", text).replace("\r\n", "\n") if self._terminal else text

    def _check_room(self) -> None:
        """Refuse what may lack its end: where there is no room for more, a write of the command's may have failed.

        :raises CannotWrite: there is not
        """
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._lost:
                raise self._lost
            os.posix_fallocate(self._file.fileno(), end, os.fstat(self._file.fileno()).st_blksize)
        except OSError as error:
            raise cannot_write(Path(tempfile.gettempdir(), "(what the command says)"), error) from error
        finally:
            os.ftruncate(self._file.fileno(), end)

    def _finish(self) -> None:
        if self._thread:
            if self._terminal:
                os.close(self._to)
            os.eventfd_write(self._end, 1)
            self._thread.join()
            self._thread = None

    def _copy(self) -> None:
        while self._end not in wait([self._news, self._end], None):
            self._take()
        while self._take() and wait([self._news], LAST_WORDS_S):  # its last words, until the last writer's end
            pass

    def _take(self) -> bool:
        """Take what has been written; return whether more of it may be on its way."""
        if not self._terminal:
            with contextlib.suppress(BlockingIOError):
                os.read(self._news, CHUNK_BYTES)
            while data := os.pread(self._from, CHUNK_BYTES, self._shown_bytes):
                self._show(data)
            return False
        try:
            data = os.read(self._from, CHUNK_BYTES)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno != errno.EIO:  # of a terminal without a writer
                raise
            return False
        self._keep(data)
        self._show(data)
        return True

    def _keep(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left and not self._lost:
                left = left[self._file.write(left) :]
        except OSError as error:
            self._lost = error

    def _show(self, data: bytes) -> None:
        self._shown_bytes += len(data)
        if self._shown is None:
            return
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._shown, left) :]
        except OSError as error:
            self._shown = None
            if error.errno != errno.EPIPE:  # of a reader that has ended
                self._refused = error
