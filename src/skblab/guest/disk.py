"""A guest's disks: image files and COW files, checked before a kernel opens them.

UML would print an error number and panic; this says before the boot what is wrong.
"""

import fcntl
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from skblab import files
from skblab.errors import DiskError, DiskInUse, UsageError
from skblab.guest import cow
from skblab.host import process, registry

FLOCK = struct.Struct("hhqqi4x")  # struct flock of x86-64, fcntl(2)
# Files that are often taken for images, by their first bytes.
NO_IMAGES = {
    b"QFI\xfb": ("a qcow2 image", "qemu-img convert -O raw {0} {0}.raw"),
    b"\x1f\x8b": ("compressed by gzip", "gunzip {0}"),
    b"\xfd7zXZ\0": ("compressed by xz", "unxz {0}"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unzstd {0}"),
    b"\x7fELF": ("a program", "skblab disk build {0}.ext4"),
}


@dataclass(frozen=True)
class Holder:
    """Who has locked a file: a process, and its lab."""

    pid: int
    lab: str = ""
    kept: bool = False

    def __str__(self) -> str:
        if self.pid <= 0:
            return "a process that cannot be seen from here"
        return f"lab {self.lab}, pid {self.pid}" if self.lab else f"pid {self.pid}: {files.command(self.pid)}"

    @property
    def hint(self) -> str:
        """How to end the holder."""
        if self.kept:
            return f"skblab down {self.lab}"
        return f"kill {self.pid}" if self.pid > 0 else "end the lab that has it"


@dataclass(frozen=True)
class Disk:
    """One disk of a guest: an image, or a COW file, whose header names *backing*."""

    file: Path
    backing: Path | None = None

    @classmethod
    def parse(cls, text: str) -> "Disk":
        """Read ``IMAGE``, ``COW`` or ``COW,BACKING``.

        :raises UsageError: it is something else
        """
        words = text.split(",")
        if len(words) > 2 or not all(words):
            raise UsageError(f"not a disk: {text!r}", hint="--disk IMAGE, --disk COW or --disk COW,BACKING")
        return cls(*(files.typed(word).absolute() for word in words))

    def __str__(self) -> str:
        return ",".join(str(path) for path in (self.file, self.backing) if path)

    def ready(self) -> None:
        """Make the COW file if it does not exist; check that a kernel can open all of the disk's files.

        :raises DiskError: it cannot: why
        :raises DiskInUse: another lab or process has locked one
        """
        if self.backing and not files.mode_of(self.file):
            create(self.file, self.backing)
        header = inspect(self.file)
        _check_path(self.file)
        if not _may(self.file, os.W_OK):
            raise DiskError(
                f"you may not write to {self.file}, and a guest writes to its disk",
                found=f"owner {self.file.stat().st_uid}, mode {stat.S_IMODE(self.file.stat().st_mode):o}",
                hint=f"skblab disk create MY.cow --backing {self.file}, and --disk MY.cow",
            )
        _check_free(self.file, fcntl.F_WRLCK)
        if header:
            self._check_backing(header)
        elif self.backing:
            raise DiskError(f"{self.file} exists and is not a COW file", hint=f"--disk {self.file}, or another name")

    def _check_backing(self, header: cow.Header) -> None:
        backing = Path(header.backing_file)
        if self.backing and not (backing.exists() and self.backing.exists() and backing.samefile(self.backing)):
            raise DiskError(
                f"{self.file} is a changed copy of another file than {self.backing}", found=f"of {backing}",
                hint=f"--disk {self.file}, or a new COW file: --disk NEW.cow,{self.backing}",
            )  # fmt: skip
        again = f"its changes fit no other content; make a new one: skblab disk create NEW.cow --backing {backing}"
        try:
            found = backing.stat()
        except OSError as error:
            raise DiskError(f"the backing file of {self.file} cannot be found", found=str(error), hint=again) from None
        if not _may(backing, os.R_OK):
            raise DiskError(f"you may not read {backing}, the backing file of {self.file}")
        size = size_bytes(backing)
        if size != header.size_bytes:
            raise DiskError(
                f"{backing} has another size than when {self.file} was made of it",
                found=f"{header.size_bytes} bytes then, {size} now", hint=again,
            )  # fmt: skip
        if int(found.st_mtime) & 0xFFFFFFFF != header.mtime_s:
            raise DiskError(
                f"{backing} was changed since {self.file} was made of it",
                found=f"written at {header.mtime_s} then, {int(found.st_mtime)} now (seconds since 1970)", hint=again,
            )  # fmt: skip
        _check_free(backing, fcntl.F_RDLCK)

    def check_root(self) -> None:
        """Check that a first disk is an image; whether it has a root file system, the guest finds out.

        :raises DiskError: it is not an image
        """
        header = inspect(self.file)
        content = Path(header.backing_file) if header else self.file
        with content.open("rb") as file:
            start = file.read(4096)
        for magic, (what, hint) in NO_IMAGES.items():
            if start.startswith(magic):
                raise DiskError(f"{content} is no disk image: it is {what}", hint=hint.format(content))
        if len(start) < 4096:
            raise DiskError(f"{content} is no disk image", found=f"{len(start)} bytes", hint="skblab disk build FILE")


def inspect(path: Path) -> cow.Header | None:
    """Return a COW file's header; None for a plain image.

    :raises DiskError: the file does not exist or cannot be read
    """
    try:
        kind = path.stat().st_mode
        start = b""
        if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
            with path.open("rb") as file:
                start = file.read(cow.HEADER_BYTES)
    except OSError as error:
        raise DiskError(f"cannot read {path}", found=str(error), hint=f"skblab disk build {path}") from None
    if not start:
        raise DiskError(f"{path} is no disk image", found="it is empty" if stat.S_ISREG(kind) else "it is no file")
    try:
        return cow.parse(start)
    except DiskError as error:
        raise DiskError(f"{path}: {error.what}", found=error.found, hint=error.hint) from None


def create(path: Path, backing: Path) -> cow.Header:
    """Make a COW file for a backing file, without copying it.

    :raises DiskError: the COW file exists, or the backing file does not
    """
    backing = backing.absolute()
    if inspect(backing):
        raise DiskError(f"{backing} is a COW file itself, and UML knows one layer", hint=f"uml_moo {backing} MERGED")
    _check_path(path.absolute())
    header = cow.Header(3, str(backing), int(backing.stat().st_mtime) & 0xFFFFFFFF, size_bytes(backing))
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise DiskError(f"cannot make {path}", found=str(error), hint="another name, or remove it first") from None
    try:
        cow.create(descriptor, header)
    finally:
        os.close(descriptor)
    return header


def changed_sectors(path: Path, header: cow.Header) -> int:
    """Return how many sectors a COW file has."""
    with path.open("rb") as file:
        return sum(len(run) for run in cow.changed(file.fileno(), header))


def merge(path: Path, target: Path) -> int:
    """Make a new image from a COW file and its backing file; return how many of its bytes come from the COW file.

    :raises DiskError: it is not a COW file, it is in use, its backing file has changed, or *target* exists
    """
    header = inspect(path)
    if not header:
        raise DiskError(f"{path} is not a COW file", hint=f"cp {path} {target}")
    if target.exists():
        raise DiskError(f"{target} is there already", hint="another name, or remove it first")
    Disk(path.absolute()).ready()
    done = process.run(["cp", "--sparse=always", header.backing_file, target])
    if done.returncode:
        raise DiskError(f"cannot make {target}", found=done.stderr.strip())
    with path.open("rb") as changes, target.open("r+b") as whole:
        return cow.merge(changes.fileno(), header, whole.fileno())


def holder(path: Path, kind: int) -> Holder | None:
    """Return who has a lock on a file that conflicts with a lock of *kind* (F_RDLCK, F_WRLCK)."""
    with path.open("rb") as file:
        answer = fcntl.fcntl(file, fcntl.F_GETLK, FLOCK.pack(kind, os.SEEK_SET, 0, 0, 0))
    found, _, _, _, pid = FLOCK.unpack(answer)
    if found == fcntl.F_UNLCK:
        return None
    if owner := registry.owner_of(pid):
        return Holder(pid if owner.kept else owner.pid, owner.name, owner.kept)
    return Holder(pid)


def _check_free(path: Path, kind: int) -> None:
    user = holder(path, kind)
    if user:
        raise DiskInUse(f"{path} is in use by {user}", hint=user.hint)


def _check_path(path: Path) -> None:
    if re.search(r"[,:\s]", str(path)):
        raise UsageError(
            f"UML takes no disk with a comma, a colon or a blank in its path: {str(path)!r}", hint="link it elsewhere"
        )


def _may(path: Path, what: int) -> bool:
    """Whether a lab's kernel may access a file: even root's has no capabilities, so the mode decides (host/jail.py)."""
    found = path.stat()
    if found.st_uid == os.geteuid():
        return bool(found.st_mode >> 6 & what)
    mine = found.st_gid in {os.getegid(), *os.getgroups()}
    return bool(found.st_mode >> (3 if mine else 0) & what)


def size_bytes(path: Path) -> int:
    """Return the size of an image or of a disk of this machine."""
    with path.open("rb") as file:
        return file.seek(0, os.SEEK_END)
