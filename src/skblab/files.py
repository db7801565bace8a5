"""skblab's directories, and files that are written by rename: every refusal of this machine is one clear error."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from skblab.errors import CannotWrite, MissingPrerequisite, UsageError

# What makes room for a write that this machine has refused: the caller has done nothing wrong.
ROOM = {
    errno.ENOSPC: "make room there: df -h {}",
    errno.EDQUOT: "make room there: quota; df -h {}",
    errno.EFBIG: "ulimit -f unlimited",
    errno.EIO: "look at the disk: dmesg | tail",
}
WRONG_PLACE = 2  # exit status: the caller has to name another file


def typed(text: str | Path) -> Path:
    """Return the path that a user has typed, with ``~`` expanded."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 - Path.expanduser() raises without a home directory


def mode_of(path: Path) -> int:
    """Return a file's type and permissions (st_mode), or 0 if there is no such file.

    :raises UsageError: this machine does not tell: the name is too long, or in a directory closed to this user
    """
    try:
        return path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character, or half of one
        return 0
    except OSError as error:
        raise UsageError(f"cannot use {path}", found=error.strerror or str(error)) from error


def directory(path: Path, mode: int, *, what: str, hint: str) -> Path:
    """Return a readable directory; make it with *mode* if it is missing.

    :raises MissingPrerequisite: it cannot be made or read; *what* it is, and the *hint*
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        os.scandir(path).close()
    except OSError as error:
        raise MissingPrerequisite(f"cannot use {what} {path}", found=_obstacle(path, error), hint=hint) from error
    return path


def _obstacle(path: Path, error: OSError) -> str:
    """Return why a directory cannot be used."""
    for one in (*reversed(path.parents), path):
        with contextlib.suppress(OSError):
            if one.is_symlink() and not one.exists():
                return f"{one} is a link to {one.readlink()}, which is not there"
            if one.exists() and not one.is_dir():
                return f"{one} is no directory"
    return f"{error.filename or path}: {error.strerror}"


@contextlib.contextmanager
def whole(path: Path, *, new: bool = False) -> Iterator[IO[bytes]]:
    """Yield a file to write; it gets its name when the block ends. If the block raises, nothing of it stays.

    :param new: an existing file of that name is left alone
    :raises CannotWrite: it cannot be written, or with *new* the name is taken
    """
    scratch = path.with_name(f".{path.name[:64]}-{secrets.token_hex(4)}")
    try:
        if new and os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        try:
            with scratch.open("xb") as file:
                yield file
            _name(scratch, path, new=new)
        finally:
            scratch.unlink(missing_ok=True)
    except OSError as error:
        raise cannot_write(path, error) from error


def check_new(*paths: Path | None) -> None:
    """Refuse files that are there already or cannot be written, before what they are for takes its time.

    :raises UsageError: one is there
    :raises CannotWrite: one cannot be written
    """
    for path in filter(None, paths):
        if os.path.lexists(path):
            raise UsageError(f"there is a file {path} already", hint=f"another name, or rm {path}")
        with whole(path, new=True):
            pass
        path.unlink()


def _name(scratch: Path, path: Path, *, new: bool) -> None:
    """Give a finished file its name."""
    if new:
        try:
            path.hardlink_to(scratch)  # fails if the name was taken since
        except PermissionError:  # link(2): a file system without hard links
            scratch.rename(path)
    else:
        scratch.rename(path)


def cannot_write(path: Path | str, error: OSError) -> CannotWrite:
    """Return the error for a write that was refused."""
    refused = CannotWrite(f"cannot write {path}", found=error.strerror or str(error))
    if room := ROOM.get(error.errno or 0):
        refused.hint = room.format(Path(path).parent)
    elif error.errno != errno.EPIPE:
        refused.exit_status = WRONG_PLACE
    return refused


def to_write(path: Path, flags: int) -> int:
    """Open a file, locked and empty; return its descriptor. The lock ends when the descriptor is closed.

    A pipe or a device is opened as it is.

    :raises CannotWrite: it cannot be written, or another process is writing it: ``found`` says which
    """
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise cannot_write(path, error) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _writer(descriptor)
            os.close(descriptor)
            raise CannotWrite(f"{path} is being written already", found=found, hint="another name, or wait") from None
        except OSError:  # a file system without locks
            pass
        os.ftruncate(descriptor, 0)
    return descriptor


def _writer(descriptor: int) -> str:
    """Return which process has the lock of a file, and its command, if /proc/locks lists it."""
    ours = os.fstat(descriptor)
    place = f"{os.major(ours.st_dev):02x}:{os.minor(ours.st_dev):02x}:{ours.st_ino}"
    with contextlib.suppress(OSError):
        locks = Path("/proc/locks").read_text()
        if found := re.search(rf": FLOCK +ADVISORY +WRITE (\d+) {place} ", locks):
            return f"pid {found[1]}: {command(int(found[1]))}"
    return ""


def command(pid: int) -> str:
    """Return a process's command line, or "(ended)"."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "(ended)"
