"""Names of labs: a name is a file lock that ends with its lab's last process."""

import contextlib
import errno
import fcntl
import json
import os
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from skblab import files
from skblab.errors import LabNameTaken, MissingPrerequisite, NoSuchLab, UsageError
from skblab.host.waiting import wait

ANOTHER_DIRECTORY = "XDG_RUNTIME_DIR=DIR, a directory of your own"
LONGEST_COMMAND = 1000
VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Owner:
    """Who runs a lab: the process that started it, its command, and the lab's process 1 (0: not yet started).

    A *kept* lab outlives the process that started it, and others join it by its socket.
    """

    name: str
    pid: int
    command: str
    started: float
    init_pid: int
    kept: bool = False


def registry_dir() -> Path:
    """Return the directory of lab names, mode 0700: ``$XDG_RUNTIME_DIR/skblab``, else ``/tmp/skblab-UID``.

    :raises MissingPrerequisite: it cannot be used, or other users could use it
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "skblab") if base and Path(base).is_dir() else Path(f"/tmp/skblab-{os.geteuid()}")  # noqa: S108
    files.directory(path, 0o700, what="the directory of labs' names", hint=ANOTHER_DIRECTORY)
    found = path.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_mode & 0o077:
        raise MissingPrerequisite(
            f"{path} is not a directory of yours alone",
            found=f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
            hint=f"chmod 700 {path}" if ours else ANOTHER_DIRECTORY,
        )
    return path


def claim(name: str, *, patience_s: float = 2.0) -> int:
    """Lock *name* for a lab and return the descriptor that holds the lock.

    If the lab that has it is ending, because its controller is gone, wait for it, *patience_s* at most.

    :raises UsageError: not a valid name
    :raises LabNameTaken: a running lab has it
    """
    if not VALID.fullmatch(name):
        raise UsageError(
            f"not a name for a lab: {name!r}", hint="letters, digits, dot, dash and underscore, 63 at most"
        )
    descriptor, owner = _take(name)
    if descriptor is None and owner and _is_ending(owner) and _ended_within(owner.init_pid, patience_s):
        descriptor, owner = _take(name)
    if descriptor is None:
        raise _taken(name, owner)
    return descriptor


def _is_ending(owner: Owner) -> bool:
    return bool(owner.init_pid) and not owner.kept and not Path(f"/proc/{owner.pid}").exists()


@contextlib.contextmanager
def _alone() -> Iterator[Path]:
    """Yield the directory, locked against every other use of it."""
    directory = registry_dir()
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield directory
    finally:
        os.close(descriptor)


def _take(name: str) -> tuple[int | None, Owner | None]:
    """Return the descriptor that holds a name, or its owner."""
    with _alone() as directory:
        path = directory / f"{name}.lab"
        descriptor = _open(path, os.O_CREAT)
        if not _lock(descriptor):
            owner = _read(descriptor)
            os.close(descriptor)
            return None, owner
        try:
            _write(
                descriptor, Owner(name=name, pid=os.getpid(), command=command_line(), started=time.time(), init_pid=0)
            )
        except OSError as error:
            _remove(directory, name)
            os.close(descriptor)
            error.filename = str(path)
            raise
        return descriptor, None


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _open(path: Path, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | flags, 0o600)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileExistsError(errno.EEXIST, "it is no file of a lab", str(path))
    return descriptor


def _taken(name: str, owner: Owner | None) -> LabNameTaken:
    if owner and owner.kept:
        return LabNameTaken(
            f"a lab named {name!r} is up already",
            found=f"by: {owner.command}",
            hint=f"join it with --lab {name}, end it with: skblab down {name}\nor choose another name",
        )
    return LabNameTaken(
        f"a lab named {name!r} is running already",
        found=f"pid {owner.pid}: {owner.command}" if owner else "its file does not say whose it is",
        hint=f"end it with: kill {owner.pid}\nor choose another name with --name" if owner else "another name: --name",
    )


def record_init(descriptor: int, pid: int) -> None:
    """Record process 1 of the lab: when it has ended, the name is free."""
    _change(descriptor, lambda owner: replace(owner, init_pid=pid))


def listen(name: str, descriptor: int) -> socket.socket:
    """Let a lab outlive its controller; return the socket on which process 1 will listen for others."""
    path = _socket_path(name)
    path.unlink(missing_ok=True)  # left by a lab that was killed: we have the name's lock
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _socket_address(name) as address:
        listener.bind(address)
    listener.listen()
    _change(descriptor, lambda owner: replace(owner, kept=True))
    return listener


def connect(name: str) -> socket.socket:
    """Return a control socket of a running lab that was kept.

    :raises NoSuchLab: no such lab
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _socket_address(name) as address:
            control.connect(address)
    except (FileNotFoundError, ConnectionRefusedError):
        control.close()
        names = ", ".join(owner.name for owner in running() if owner.kept)
        raise NoSuchLab(
            f"no lab named {name!r} to join",
            found=f"there are: {names}" if names else "no lab is up",
            hint=f"skblab up {name}",
        ) from None
    return control


def running() -> list[Owner]:
    """Return the owners of this user's running labs, by name; remove the files of labs that were killed."""
    owners = []
    with _alone() as directory:
        for path in sorted(directory.glob("*.lab")):
            with contextlib.suppress(OSError):
                descriptor = _open(path)
                if _lock(descriptor):
                    _remove(directory, path.stem)
                elif owner := _read(descriptor):
                    owners.append(owner)
                os.close(descriptor)
    return owners


def _socket_path(name: str) -> Path:
    return registry_dir() / f"{name}.socket"


@contextlib.contextmanager
def _socket_address(name: str) -> Iterator[str]:
    """Yield a short address of the socket: a directory's path may be longer than sun_path (unix(7))."""
    directory = os.open(registry_dir(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}.socket"
    finally:
        os.close(directory)


def first_files(name: str) -> Path:
    """Return the path of a lab's own initramfs, if its guest has modules; it is removed with the name."""
    return registry_dir() / f"{name}.cpio"


def owner_of(pid: int) -> Owner | None:
    """Return the owner of the lab in which a process runs, or None."""
    namespace = _pid_namespace(pid) if pid > 0 else None
    if namespace is None:
        return None
    return next((one for one in running() if one.init_pid and _pid_namespace(one.init_pid) == namespace), None)


def _pid_namespace(pid: int) -> str | None:
    try:
        return str(Path(f"/proc/{pid}/ns/pid").readlink())
    except OSError:
        return None


def command_line() -> str:
    """Return this process's own command line, shortened to LONGEST_COMMAND characters."""
    line = " ".join(sys.orig_argv)
    return line if len(line) <= LONGEST_COMMAND else f"{line[: LONGEST_COMMAND - 3]}..."


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)


def _change(descriptor: int, change: Callable[[Owner], Owner]) -> None:
    with _alone():
        owner = _read(descriptor)
        assert owner
        _write(descriptor, change(owner))


def forget(name: str, descriptor: int) -> None:
    """Remove the name's files while *descriptor* still holds its lock, then close it."""
    with _alone() as directory:
        _remove(directory, name)
        os.close(descriptor)


def _remove(directory: Path, name: str) -> None:
    for kind in ("socket", "cpio", "lab"):
        directory.joinpath(f"{name}.{kind}").unlink(missing_ok=True)


def _read(descriptor: int) -> Owner | None:
    """Return the owner in a lab's file, without fields that this version of skblab does not know."""
    try:
        recorded = json.loads(os.pread(descriptor, 65536, 0))
        return Owner(**{field.name: recorded[field.name] for field in fields(Owner) if field.name in recorded})
    except (ValueError, TypeError):
        return None


def _ended_within(pid: int, patience_s: float) -> bool:
    """Wait for a process that is not our child."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(wait([pidfd], patience_s))
    finally:
        os.close(pidfd)
