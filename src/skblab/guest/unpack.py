"""Unpack a guest's tar archive without trusting it: the guest's root can send anything."""

import shutil
import tarfile
from pathlib import Path, PurePosixPath
from typing import IO, cast

PERMISSIONS = 0o777  # drops set-user-ID, set-group-ID and sticky bits
LONGEST_HEADER_BYTES = 1 << 20  # size of a name or of attributes: tarfile reads them into memory
IN_MEMORY = (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME,
             tarfile.GNUTYPE_LONGLINK)  # fmt: skip


class _Member(tarfile.TarInfo):
    """A member whose name and attributes have a bounded size."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        if self.type in IN_MEMORY and self.size > LONGEST_HEADER_BYTES:
            raise tarfile.ReadError(f"a name or attributes of {self.size} bytes")
        member: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]
        return member


class _Ending:
    """A stream that raises at the second read of its end: tarfile would read on for the size that a member claims."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return the next bytes."""
        data = self._stream.read(size)
        if self._ended:
            raise tarfile.ReadError("it is cut off")
        self._ended = not data
        return data


def unpack(stream: IO[bytes], source: str, target: Path) -> list[str]:
    """Unpack an archive of the tree *source* as *target*; return which members were left out, and why.

    Devices, FIFOs, and members or links outside of *target* are left out. Modes and times are kept.

    :raises tarfile.TarError: it is not an archive, or is cut off
    :raises OSError: a file cannot be written
    """
    left_out = []

    def checked(member: tarfile.TarInfo, directory: str) -> tarfile.TarInfo | None:
        name = member.name
        try:
            return _checked(_renamed(member, source, target.name), directory, target)
        except (tarfile.FilterError, ValueError) as error:
            left_out.append(f"{name}: {_why(error)}")
            return None

    with tarfile.open(fileobj=cast("IO[bytes]", _Ending(stream)), mode="r|", tarinfo=_Member) as archive:
        archive.extractall(target.parent, filter=checked)  # noqa: S202 - that is what the filter is for
    return left_out


def _renamed(member: tarfile.TarInfo, source: str, name: str) -> tarfile.TarInfo:
    """Return a member with its name, and a hard link's target, moved below *target*.

    :raises ValueError: it is outside of the archive's tree
    """
    renamed = member.replace(name=str(name / PurePosixPath(member.name).relative_to(source)))
    if member.islnk():
        renamed.linkname = str(name / PurePosixPath(member.linkname).relative_to(source))
    return renamed


def _checked(member: tarfile.TarInfo, directory: str, target: Path) -> tarfile.TarInfo:
    """Return a member that is safe to unpack.

    :raises tarfile.FilterError: it is not safe, by tarfile's data filter
    :raises ValueError: it is not safe, by the checks here
    """
    safe = tarfile.data_filter(member, directory)
    if not Path(directory, safe.name).resolve().is_relative_to(Path(directory).resolve() / target.name):
        raise ValueError("a place outside of the copy")
    if safe.islnk() and not Path(directory, safe.linkname).is_file():
        raise ValueError("another name of a file that is not in the copy")
    free = shutil.disk_usage(directory).free
    if safe.size > free:
        raise ValueError(f"it has {safe.size} bytes, and there is room for {free}")
    return safe.replace(mode=member.mode & PERMISSIONS)


def _why(error: Exception) -> str:
    match error:
        case tarfile.AbsoluteLinkError() | tarfile.LinkOutsideDestinationError():
            return "a link to a place outside of the copy"
        case tarfile.SpecialFileError():
            return "a device or a FIFO"
        case tarfile.OutsideDestinationError() | tarfile.AbsolutePathError():
            return "a place outside of the copy"
    return str(error)
