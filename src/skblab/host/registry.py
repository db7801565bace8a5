"""Names of labs: one lab a name, held by a file lock that ends with the lab's last process."""

import contextlib
import fcntl
import json
import os
import re
import socket
import stat
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from skblab.errors import LabNameTaken, MissingPrerequisite, NoSuchLab, UsageError
from skblab.host.waiting import wait

LONGEST_COMMAND = 1000
VALID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who runs a lab: the controlling process, as it was when the lab started, and the lab's process 1 (0: not yet).

    A lab that is *kept* outlives it, and others join it by its socket.
    """

    name: str
    pid: int
    command: str
    started: float
    init_pid: int
    kept: bool = False


def registry_dir() -> Path:
    """Return the directory of lab names, mode 0700: ``$XDG_RUNTIME_DIR/skblab``, else ``/tmp/skblab-UID``.

    :raises MissingPrerequisite: it is somebody else's
    """
    base = os.environ.get("XDG_RUNTIME_DIR")
    path = Path(base, "skblab") if base and Path(base).is_dir() else Path(f"/tmp/skblab-{os.geteuid()}")  # noqa: S108
    path.mkdir(mode=0o700, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise MissingPrerequisite(
            f"{path} is not a directory of yours alone",
            found=f"owner {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}",
            mend=f"rm -r {path}",
        )
    return path


def claim(name: str, *, patience_s: float = 2.0) -> int:
    """Take *name* for a lab and return the descriptor that holds it.

    A lab whose controller is gone is ending: its name is waited for, *patience_s* at most.

    :raises UsageError: not a name
    :raises LabNameTaken: a running lab has it
    """
    if not VALID.fullmatch(name):
        raise UsageError(
            f"not a name for a lab: {name!r}", mend="letters, digits, dot, dash and underscore, 63 at most"
        )
    path = registry_dir() / f"{name}.lab"
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(descriptor, name, patience_s)
            if _is(descriptor, path):
                break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its lab has ended meanwhile and removed it; a lock on it holds no name
    _write(descriptor, Owner(name=name, pid=os.getpid(), command=command_line(), started=time.time(), init_pid=0))
    return descriptor


def record_init(descriptor: int, pid: int) -> None:
    """Note process 1 of the lab: when it has ended, the name is free."""
    owner = _read(descriptor)
    assert owner
    _write(descriptor, replace(owner, init_pid=pid))


def listen(name: str, descriptor: int) -> socket.socket:
    """Let others join a lab that is to outlive its controller; return the socket that process 1 is to listen on."""
    path = _socket_path(name)
    path.unlink(missing_ok=True)  # a lab of that name that did not end by itself: the name's lock is ours
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with _socket_address(name) as address:
        listener.bind(address)
    listener.listen()
    owner = _read(descriptor)
    assert owner
    _write(descriptor, replace(owner, kept=True))
    return listener


def connect(name: str) -> socket.socket:
    """Return a control socket of a running lab that outlives its controllers.

    :raises NoSuchLab: there is none of that name
    """
    control = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        with _socket_address(name) as address:
            control.connect(address)
    except OSError:
        control.close()
        names = ", ".join(owner.name for owner in running() if owner.kept)
        raise NoSuchLab(
            f"no lab named {name!r} to join",
            found=f"there are: {names}" if names else "there is none",
            mend=f"skblab up {name}",
        ) from None
    return control


def running() -> list[Owner]:
    """Return the owners of this user's labs that run now, by name."""
    owners = []
    for path in sorted(registry_dir().glob("*.lab")):
        with contextlib.suppress(OSError), path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                owner = _read(file.fileno())
                owners += [owner] if owner else []
    return owners


def _socket_path(name: str) -> Path:
    return registry_dir() / f"{name}.socket"


@contextlib.contextmanager
def _socket_address(name: str) -> Iterator[str]:
    """Yield an address for the socket that is short enough, however long its directory's name is (unix(7))."""
    directory = os.open(registry_dir(), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{name}.socket"
    finally:
        os.close(directory)


def command_line() -> str:
    """Return this process's own command line, shortened to LONGEST_COMMAND characters."""
    line = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    return line if len(line) <= LONGEST_COMMAND else f"{line[: LONGEST_COMMAND - 3]}..."


def _write(descriptor: int, owner: Owner) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(owner)).encode(), 0)


def forget(name: str, descriptor: int) -> None:
    """Remove the name's files while *descriptor* still holds its lock, and let go."""
    _socket_path(name).unlink(missing_ok=True)
    (registry_dir() / f"{name}.lab").unlink(missing_ok=True)
    os.close(descriptor)


def _is(descriptor: int, path: Path) -> bool:
    """Whether a name is still that of a file that was opened by it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _lock(descriptor: int, name: str, patience_s: float) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = _read(descriptor)
        if owner and owner.kept:
            raise LabNameTaken(
                f"a lab named {name!r} is up already",
                found=f"by: {owner.command}",
                mend=f"join it with --lab {name}, end it with: skblab down {name}\nor choose another name",
            ) from None
        controller_is_gone = owner and not Path(f"/proc/{owner.pid}").exists()
        if owner and owner.init_pid and controller_is_gone and _ended_within(owner.init_pid, patience_s):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        raise LabNameTaken(
            f"a lab named {name!r} is running already",
            found=f"pid {owner.pid}: {owner.command}" if owner else "its owner has not written its name yet",
            mend=f"end it with: kill {owner.pid}\nor choose another name with --name" if owner else "try again",
        ) from None


def _read(descriptor: int) -> Owner | None:
    """Return what a lab says of its owner, as far as this version of skblab knows it."""
    try:
        told = json.loads(os.pread(descriptor, 65536, 0))
        return Owner(**{field.name: told[field.name] for field in fields(Owner) if field.name in told})
    except (ValueError, TypeError):
        return None


def _ended_within(pid: int, patience_s: float) -> bool:
    """Wait for a process that is none of our children."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(wait([pidfd], patience_s))
    finally:
        os.close(pidfd)
