"""How a command ends: one message and an exit status, whatever stopped it.

If this machine refused something (a file, a limit, memory), the message says what. Every other unexpected exception is
a fault of skblab: one line says so, and its report is kept in a file.
"""

import contextlib
import errno
import logging
import mmap
import os
import platform
import shlex
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable

from skblab.cli import streams
from skblab.errors import CallbackFailed, MissingPrerequisite, SkblabError
from skblab.files import ROOM, cannot_write
from skblab.host.process import no_more_processes

log = logging.getLogger(__name__)

INTERRUPTED = 130
FAULT = 70  # sysexits.h EX_SOFTWARE
SOME_BYTES = 16 << 20

LIMITS = {
    errno.EMFILE: ("this process may open no more files", "ulimit -n 1024"),
    errno.ENFILE: ("this machine has no more open files", "sysctl -w fs.file-max=1000000   (as root)"),
    errno.ENOMEM: ("this process gets no more memory", "ulimit -v unlimited; free -m"),
    errno.EFBIG: ("a file would be larger than this process may write", "ulimit -f unlimited"),
    errno.ENOSPC: ("a file system is full", "make room: df -h"),
    errno.EDQUOT: ("this user's quota on a file system is used up", "make room: quota"),
}
# The message of such an error names the file.
OF_A_FILE = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST,
    errno.ENAMETOOLONG, errno.EIO, errno.ENODEV, errno.ENXIO, errno.EBUSY, errno.ETXTBSY, errno.ESTALE, errno.ENOTEMPTY,
}  # fmt: skip


def status_of(step: Callable[[], int | None]) -> int:
    """Run a step of a command; return its status, or print the exception that stopped it and return that status."""
    try:
        return step() or 0
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    except KeyboardInterrupt:
        _print("interrupted; everything it started is gone")
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the one place where everything ends
        return _report(error)


def _report(error: BaseException) -> int:
    if isinstance(error, CallbackFailed) and error.__cause__:  # the command line's own callback
        return _report(error.__cause__)
    if isinstance(error, OSError) and streams.given_up(error):
        if error.errno != errno.EPIPE:  # else its reader has ended
            _print(f"cannot write to {error.filename}\n  {error.strerror}")
        return SkblabError.exit_status
    known = error if isinstance(error, SkblabError) else refused(error)
    if known is None:
        return _fault(error)
    log.debug("", exc_info=error)
    _print(str(known))
    return known.exit_status


def refused(error: BaseException) -> SkblabError | None:
    """Return the error for what this machine refused; None if the exception is a fault of skblab."""
    if isinstance(error, OSError):
        return _refused_by_the_system(error)
    if isinstance(error, MemoryError) or "annot allocate memory" in str(error) or _is_out_of_memory():
        return _limit(OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    if isinstance(error, RuntimeError) and str(error) == "can't start new thread":
        return no_more_processes("a thread counts as one")
    return None


def _is_out_of_memory() -> bool:
    """Whether a small mapping fails: then Python and its libraries may raise any exception."""
    try:
        mmap.mmap(-1, SOME_BYTES).close()
    except OSError:
        return True
    return False


def _refused_by_the_system(error: OSError) -> SkblabError | None:
    if error.errno in LIMITS:
        return _limit(error)
    if error.errno in OF_A_FILE and str(error.filename).startswith(("/proc/", "/dev/")):
        return MissingPrerequisite(f"cannot use {error.filename}", found=error.strerror or "", hint="skblab doctor")
    if error.errno in OF_A_FILE and error.filename:
        return SkblabError(f"cannot use {error.filename}", found=error.strerror or "")
    if error.errno == errno.ENOENT and "temporary directory" in (error.strerror or ""):  # tempfile.gettempdir()
        return MissingPrerequisite("no directory for temporary files", found=error.strerror or "", hint="TMPDIR=DIR")
    if error.errno == errno.ENOENT:  # without a file's name: getcwd(2)
        return MissingPrerequisite("the working directory is gone", found=error.strerror or "", hint="cd DIRECTORY")
    return None


def _limit(error: OSError) -> SkblabError:
    if error.filename and error.errno in ROOM:
        return cannot_write(error.filename, error)
    what, hint = LIMITS[error.errno or 0]
    where = f"{error.filename}: " if error.filename else ""
    return MissingPrerequisite(what, found=f"{where}{error.strerror}", hint=hint)


def _fault(error: BaseException) -> int:
    """Print that this is a fault of skblab, and where its report is."""
    from importlib.metadata import version  # noqa: PLC0415 - for this alone

    trace = "".join(traceback.format_exception(error))
    message = " ".join(str(error).split())
    where = f"skblab {version('skblab')}, Python {platform.python_version()}, {platform.platform()}"
    report = f"{shlex.join(sys.argv)}\n{where}\n{trace}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="skblab-fault-", suffix=".txt", delete=False) as file:
            file.write(report)
        to_send = file.name
    except OSError:
        to_send = f"this:\n{report}"
    log.debug("%s", trace)
    _print(f"a fault of skblab itself: {type(error).__name__}: {message}\n  report it with {to_send}")
    return FAULT


def _print(text: str) -> None:
    with contextlib.suppress(OSError):
        print(f"skblab: {text}", file=sys.stderr)


class Threads:
    """Collects the statuses of failed threads; Python would print a traceback and go on."""

    def __init__(self) -> None:
        self._statuses: list[int] = []
        threading.excepthook = self._ended

    def _ended(self, ended: threading.ExceptHookArgs) -> None:
        def again() -> None:
            if ended.exc_value:
                raise ended.exc_value

        self._statuses.append(status_of(again))

    def status(self) -> int:
        """Return the status of the first thread that failed, or 0."""
        return next(iter(self._statuses), 0)
