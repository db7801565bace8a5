"""What it takes to copy the kernel of a guest in virtual time (kernel/agent/branch.c).

A kernel is a process of this machine. Of what that has, /proc says which of its descriptors are the guest's memory,
files of ours, or something of the kernel's own, and where it has mapped them. The copy gets others of each.
"""

import os
import re
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from skblab.agent import abi
from skblab.agent.abi import BranchKind, BranchStep
from skblab.errors import SkblabError
from skblab.image.index import FunctionIndex

FUNCTIONS = ("start_userspace", "unmap", "__switch_mm", "fix_range_common", "do_uml_exitcalls")  # struct agent_branch
WATCHED = re.compile(r"^tfd: +(\d+) +events: +([0-9a-f]+) +data: +([0-9a-f]+)", re.MULTILINE)  # proc(5), fdinfo
FLAGS = re.compile(r"^flags:\s+([0-7]+)", re.MULTILINE)
TRACER = re.compile(r"^TracerPid:\s+(\d+)", re.MULTILINE)
STUB = "memfd:uml-userspace"  # arch/um/os-Linux/skas/process.c init_stub_exe_fd()
EPOLL = "anon_inode:[eventpoll]"
STREAM, CONNECTED = "0001", "03"  # /proc/net/unix

File = tuple[int, int]
"""A device and an inode."""


class CannotBranch(SkblabError):
    """The guest has, or was asked for, what a copy of its kernel cannot have."""


@dataclass(frozen=True)
class _Mapping:
    """A place where a file is mapped."""

    start: int
    bytes: int
    protection: int
    offset: int
    file: File
    path: str
    is_shared: bool


class Kernel:
    """The process of a kernel that rests, as /proc shows it. Two are equal where nothing has changed between them."""

    def __init__(self, pid: int) -> None:
        """Read what it has.

        :raises OSError: it has ended
        :raises CannotBranch: this machine does not say
        """
        self._proc = Path("/proc", str(pid))
        self._maps = (self._proc / "maps").read_text()
        if not self._maps:  # nobody has waited for it yet
            raise ProcessLookupError
        children = self._proc / "task" / str(pid) / "children"
        if not children.exists():
            raise CannotBranch("this machine's kernel does not say which children a process has",
                               found="its CONFIG_PROC_CHILDREN is not set")  # fmt: skip
        self._children = children.read_text().split()
        self._kinds = {int(name): os.readlink(self._proc / "fd" / name) for name in os.listdir(self._proc / "fd")}  # noqa: PTH115, PTH208

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kernel) and self._seen == other._seen

    def __hash__(self) -> int:
        return hash(self._maps)

    @property
    def _seen(self) -> tuple[object, ...]:
        return self._maps, self._kinds, self._children

    def order(self, functions: FunctionIndex, replaced: Sequence[File]) -> tuple[bytes, int]:
        """Return the order by which it copies its process, and the size of the guest's memory in bytes.

        It is about descriptors of what the copy has instead: of another memory first, then of the files *replaced*, and
        of another mconsole.

        :raises CannotBranch: it has another connection with this machine
        """
        stats = {fd: (self._proc / "fd" / str(fd)).stat() for fd in self._kinds}
        files = {fd: (one.st_dev, one.st_ino) for fd, one in stats.items()}
        mappings = [one for one in _mappings(self._maps) if one.is_shared]
        memory = self._memory(files, mappings)
        paths = self._sockets()
        replaced = [*replaced, *(file for file in files.values() if (paths.get(file[1]) or "").endswith("/mconsole"))]
        steps = [BranchStep(BranchKind.BRANCH_COPY, fd=memory, other=0, bytes=stats[memory].st_size)]
        for number, file in enumerate((files[memory], *replaced)):
            theirs = [fd for fd, one in files.items() if one == file]
            steps += [BranchStep(BranchKind.BRANCH_REPLACE, fd=fd, other=number) for fd in theirs]
            steps += [
                BranchStep(BranchKind.BRANCH_MAP, one.protection, theirs[0], 0, one.start, one.bytes, one.offset)
                for one in mappings
                if one.file == file
            ]
        steps += self._of_its_own(files, paths, set(replaced))
        self._check_written(
            {fd for fd, one in stats.items() if stat.S_ISREG(one.st_mode)}, files, {files[memory], *replaced}
        )
        addresses = [one.address if (one := functions.lookup(name)) else 0 for name in FUNCTIONS]
        programs = [child for child in self._children if self._is_program(child)]
        addresses.append(self._stub_start(programs[0], files[memory]) if programs else 0)
        order = abi.encode_branch(addresses, len(programs), 1 + len(replaced), steps)
        if len(order) > abi.BRANCH_BYTES:
            raise CannotBranch(f"the guest's kernel has {len(mappings)} mappings: too many for a branch")
        return order, stats[memory].st_size

    def _check_written(self, regular: set[int], files: dict[int, File], replaced: set[File]) -> None:
        """Refuse where a copy would share the offset of a file that is written (open(2)).

        :raises CannotBranch: a program writes a file of this machine's
        """
        for fd in regular:
            if (
                files[fd] not in replaced
                and STUB not in self._kinds[fd]
                and self._flags(fd) & os.O_ACCMODE != os.O_RDONLY
            ):
                raise CannotBranch(
                    "the guest writes a file of this machine's, and cannot branch", found=self._kinds[fd]
                )

    def _is_program(self, child: str) -> bool:
        """Whether programs of the guest run in a child of the kernel's process (os-Linux/skas/process.c)."""
        proc = Path("/proc", child)
        if STUB in os.readlink(proc / "exe"):  # noqa: PTH115
            return True
        tracer = TRACER.search((proc / "status").read_text())
        return tracer is not None and tracer[1] == self._proc.name

    def _stub_start(self, program: str, memory: File) -> int:
        """Return where the address space of programs ends: the kernel's own code begins, and behind it, its data."""
        ours = [one for one in _mappings(Path("/proc", program, "maps").read_text()) if one.file == memory]
        data = max(ours, key=lambda one: one.start)
        return next(one.start for one in ours if one.start + one.bytes == data.start)

    def _memory(self, files: dict[int, File], mappings: Sequence[_Mapping]) -> int:
        """Return the descriptor of the guest's memory (arch/um/os-Linux/mem.c create_mem_file())."""
        mapped = {one.file for one in mappings if "memfd:" not in one.path}
        for fd, file in files.items():
            if file in mapped:
                return fd
        raise CannotBranch("the guest's memory is not found in its kernel's process")

    def _of_its_own(self, files: dict[int, File], paths: dict[int, str], replaced: set[File]) -> list[BranchStep]:
        """Return the steps by which the copy gets what the kernel has made for itself.

        That is a pair of sockets to a thread for disks (arch/um/drivers/ubd_kern.c), which the copy does not have, and
        its lists of what interrupts it. Of its programs' processes the agent knows.

        :raises CannotBranch: something else may interrupt it
        """
        watched = {fd: self._watched(fd) for fd, kind in self._kinds.items() if kind == EPOLL}
        ends = []
        for fd in [fd for ones in watched.values() for fd, *_ in ones]:
            if files[fd] in replaced or fd in watched:
                continue
            if paths.get(files[fd][1]) is None:
                raise CannotBranch(
                    "the guest has a client, or a command that is not one of its servers, and cannot branch",
                    found=f"its kernel waits for {self._kinds[fd]}",
                )
            ends.append(fd)
        others = [
            fd for fd, (_, inode) in files.items()
            if paths.get(inode) == "" and fd not in ends and self._flags(fd) & os.O_NONBLOCK
        ]  # fmt: skip
        if len(ends) != len(others) or len(ends) > 1:
            raise CannotBranch("the guest's kernel has sockets that nobody knows", found=f"{ends}, {others}")
        steps = [BranchStep(BranchKind.BRANCH_PAIR, fd=fd, other=other) for fd, other in zip(ends, others, strict=True)]
        for epoll in sorted(watched, key=lambda epoll: any(fd in watched for fd, *_ in watched[epoll])):
            steps.append(BranchStep(BranchKind.BRANCH_EPOLL, fd=epoll))
            steps += [
                BranchStep(BranchKind.BRANCH_WATCH, events, epoll, fd, data) for fd, events, data in watched[epoll]
            ]
        return steps

    def _watched(self, epoll: int) -> list[tuple[int, int, int]]:
        found = WATCHED.findall((self._proc / "fdinfo" / str(epoll)).read_text())
        return [(int(fd), int(events, 16), int(data, 16)) for fd, events, data in found]

    def _flags(self, fd: int) -> int:
        found = FLAGS.search((self._proc / "fdinfo" / str(fd)).read_text())
        return int(found[1], 8) if found else 0

    def _sockets(self) -> dict[int, str]:
        """Return the paths of the lab's own Unix sockets by their inodes; of connected streams, ""."""
        found = {}
        for line in (self._proc / "net" / "unix").read_text().splitlines()[1:]:
            _, _, _, _, kind, state, inode, *path = line.split(maxsplit=7)
            if path or (kind, state) == (STREAM, CONNECTED):
                found[int(inode)] = "".join(path)
        return found


def _mappings(maps: str) -> Iterator[_Mapping]:
    """Yield what /proc/PID/maps has."""
    for line in maps.splitlines():
        place, how, offset, device, inode, *path = line.split(maxsplit=5)
        start, end = (int(word, 16) for word in place.split("-"))
        major, minor = (int(word, 16) for word in device.split(":"))
        protection = sum(1 << bit for bit in range(3) if how[bit] != "-")
        file = os.makedev(major, minor), int(inode)
        yield _Mapping(start, end - start, protection, int(offset, 16), file, "".join(path), how[3] == "s")


def file_of(which: int | Path) -> File:
    """Return the file of a descriptor, or of a path."""
    found = os.stat(which)  # noqa: PTH116
    return found.st_dev, found.st_ino
