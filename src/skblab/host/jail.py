"""Confine the guest kernel's process: which files of this machine it sees, which system calls it may make.

Root in the guest can load a module, and a module can make any system call of the host (arch/um/kernel/ksyms.c exports
``syscall``). So the host's kernel enforces everything here, and nothing relies on the guest. The process gets

* a user namespace of its own without any capability, and it can make no other: nothing below can be undone;
* a root directory of its own: the files that a UML kernel needs and the tree given to the guest, all read-only;
  only its disks, its memory and its sockets are writable;
* a seccomp(2) filter: no Unix stream socket, which could connect to this machine's servers, and no kernel interface
    that a UML kernel does not need.

A part of the lab's first process (lab_init.py), so it imports little.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct

from skblab.host.link import SetUpError, check, libc, read_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 0x1, 0x2, 0x4, 0x8, 0x1000, 0x4000, 0x40000
NO_NAMESPACES = "user namespace"  # the step that fails
MNT_DETACH = 2
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
MOUNT_ATTR_RDONLY, MOUNT_ATTR_NOSUID, MOUNT_ATTR_NODEV = 0x1, 0x2, 0x4
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38
CAP_SYS_PTRACE = 19
YAMA = "/proc/sys/kernel/yama/ptrace_scope"
YAMA_CAPABILITY = "2"  # ptrace_scope 2: PTRACE_TRACEME, with which UML runs the guest's processes, needs CAP_SYS_PTRACE
PT_INTERP = 3

LAB = "/dev/shm"  # noqa: S108 - the lab mounts a tmpfs of its own there
PRIVATE = f"{LAB}/guest"  # the kernel's memory and sockets; it may write here
ROOT = f"{LAB}/root"  # its root directory is assembled here
# What a UML kernel opens by name: os-Linux/start_up.c get_host_cpu_features(), drivers/null.c, drivers/random.c.
CPU, DEVICES = "/proc/cpuinfo", ("/dev/null", "/dev/random")
COVERED = ("proc", "sys", "dev")  # directories of the guest's tree over which the guest mounts its own

# x86-64 system call numbers (arch/x86/entry/syscalls/syscall_64.tbl) and constants of seccomp(2) filters.
SYS_SOCKET, SYS_CLONE, SYS_PIVOT_ROOT, SYS_SECCOMP, SYS_CLONE3, SYS_MOUNT_SETATTR = 41, 56, 155, 317, 435, 442
DENIED = (
    248, 249, 250,  # add_key, request_key, keyctl: the user's session keyring
    272, 308,  # unshare, setns
    298, 321, 323, 425,  # perf_event_open, bpf, userfaultfd, io_uring_setup: io_uring bypasses this filter for sockets
)  # fmt: skip
NAMESPACES = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID | CLONE_NEWNET
AF_UNIX, AF_INET, AF_INET6, SOCK_DGRAM, SOCK_TYPES = 1, 2, 10, 2, 0xF
AUDIT_ARCH_X86_64, X32 = 0xC000003E, 0x40000000
LOAD, EQUAL, AT_LEAST, ANY_OF, AND, RETURN = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
NUMBER, ARCHITECTURE, FIRST, SECOND = 0, 4, 16, 24  # offsets in struct seccomp_data
ALLOW, REFUSE = 0x7FFF0000, 0x00050000  # REFUSE is combined with an errno
SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW = 1, 4


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def new_namespaces(flags: int) -> None:
    """Unshare namespaces; the caller's user becomes root in the new user namespace.

    :param flags: the namespaces beside the user namespace, as for unshare(2)
    """
    user = os.geteuid(), os.getegid()
    check(NO_NAMESPACES, libc.unshare(CLONE_NEWUSER | flags))
    become_root(*user)


def fork_into_namespaces(flags: int) -> int:
    """Fork a child into new namespaces, which has to ``become_root()``; return its pid, or 0 in the child.

    By clone(2) itself, for to unshare(2) a PID namespace and to fork(2) then leaves a process between the two. Only a
    process with one thread may do so; ``os.register_at_fork()`` does not hear of it.

    :param flags: the namespaces beside the user namespace
    """
    call = ctypes.PyDLL(None, use_errno=True).syscall  # the child has the GIL, as its parent had
    pid: int = call(SYS_CLONE, CLONE_NEWUSER | flags | signal.SIGCHLD, 0, 0, 0, 0)
    check(NO_NAMESPACES, pid)
    return pid


def become_root(uid: int, gid: int) -> None:
    """Map root of this process's new user namespace to a user and a group of the old one."""
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            write_file(f"/proc/self/{name}", text)
        except OSError as error:
            raise SetUpError(f"user namespace ({name})", error.errno or 0) from error


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """Mount a file system, or raise SetUpError naming the target."""
    arguments = (os.fsencode(source), os.fsencode(target), kind.encode() or None, flags, options.encode() or None)
    check(
        f"mount of {target}", libc.mount(arguments[0], arguments[1], arguments[2], ctypes.c_ulong(flags), arguments[4])
    )


def confine(kernel: str, readable: list[str], writable: list[str], tree: str) -> str:
    """Confine this process, which will execute the kernel. Return the loader's library path.

    :param kernel: the program
    :param readable: files that it finds under their own names, without symbolic links
    :param writable: its disks, which it finds the same way
    :param tree: the directory that the guest may see, or ""
    :raises SetUpError: this machine refuses a step
    """
    new_namespaces(CLONE_NEWNS)
    try:
        _make_root([kernel, _loader(kernel), CPU, *LIBRARIES, *readable], [PRIVATE, *DEVICES, *writable], tree)
    except OSError as error:
        raise SetUpError("the kernel's own root", error.errno or 0, str(error)) from error
    _enter_root()
    _drop_capabilities()
    _filter_calls()
    return ":".join({os.path.dirname(path) for path in LIBRARIES})  # noqa: PTH120 - the new root has no /etc/ld.so.cache


def prepare() -> None:
    """Make, while the lab starts, the part of the root directory that every kernel needs."""
    for directory in (PRIVATE, ROOT):
        os.mkdir(directory)  # noqa: PTH102
    mount("tmpfs", ROOT, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    _make_places()


def _make_places() -> None:
    for path in ALWAYS:
        _make_place(path)
    if not os.path.lexists(f"{ROOT}/dev/pts"):
        os.mkdir(f"{ROOT}/dev/pts")  # noqa: PTH102
        os.symlink("pts/ptmx", f"{ROOT}/dev/ptmx")  # noqa: PTH211


def _make_root(readable: Iterable[str], writable: list[str], tree: str) -> None:
    """Assemble the new root directory at ROOT: every file has the name that it has on this machine."""
    mount(tree if tree == "/" else ROOT, ROOT, "", MS_BIND | MS_REC)
    if tree not in {"", "/"}:
        os.makedirs(ROOT + tree, exist_ok=True)  # noqa: PTH103
        mount(tree, ROOT + tree, "", MS_BIND | MS_REC)
    for name in COVERED if tree else ():
        place = os.path.join(ROOT + tree, name)  # noqa: PTH118
        if os.path.isdir(place) and not os.path.islink(place):  # noqa: PTH112, PTH114
            mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755")
    if tree:
        _make_places()
    readable = [
        path
        for path in readable  # if one is missing, or is not a program, the kernel or execve(2) reports it
        if os.path.exists(path) and (path in ALWAYS or not os.path.lexists(ROOT + path))  # noqa: PTH110
    ]
    if tree == "/":  # symbolic links of the tree resolve as on this machine
        writable = [os.path.realpath(path) for path in writable]
    for path in (*readable, *writable):
        if path not in ALWAYS:
            _make_place(path)
    for path in readable:
        mount(path, ROOT + path, "", MS_BIND)
    _set_read_only()
    for path in writable:
        mount(path, ROOT + path, "", MS_BIND)
    # UML opens pseudo-terminals to see whether they send SIGIO (os-Linux/sigio.c check_sigio()).
    mount("devpts", f"{ROOT}/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0600")


def _make_place(path: str) -> None:
    """Make the mount point for a file or a directory of this machine, unless it exists."""
    place = ROOT + path
    os.makedirs(os.path.dirname(place), exist_ok=True)  # noqa: PTH103, PTH120
    if os.path.lexists(place):
        return
    if stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116
        os.mkdir(place)  # noqa: PTH102
    else:
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC))


def _set_read_only() -> None:
    """Make the whole new root read-only, without devices and set-user-ID programs (mount_setattr(2), Linux 5.12)."""
    attributes = struct.pack("=4Q", MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV, 0, 0, 0)
    check(
        "files that are read-only for the guest's kernel (mount_setattr)",
        libc.syscall(SYS_MOUNT_SETATTR, AT_FDCWD, ROOT.encode(), AT_RECURSIVE, attributes, len(attributes)),
    )


def _enter_root() -> None:
    """Make the new root "/" and unmount the old one."""
    os.chdir(ROOT)
    check("the kernel's own root", libc.syscall(SYS_PIVOT_ROOT, b".", b"."))
    check("leaving this machine's root", libc.umount2(b".", MNT_DETACH))
    os.chdir("/")


def _drop_capabilities() -> None:
    """Empty the capability bounding set and set no_new_privs: execve(2) then gives root no capability."""
    kept = CAP_SYS_PTRACE if read_file(YAMA).strip() == YAMA_CAPABILITY else -1
    for number in range(64):
        if number != kept and libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0) < 0:
            if ctypes.get_errno() != errno.EINVAL:  # behind the last capability
                check("dropping capabilities", -1)
            break
    check("no new privileges", libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _filter_calls() -> None:
    """Install the seccomp filter.

    It decides no guest program's call: PTRACE_SYSEMU skips them on the host, or UML's own filter (``seccomp=on``) turns
    each into SIGSYS, which takes precedence over a refusal (seccomp(2)).
    """
    check(
        "a filter of system calls (seccomp)",
        libc.syscall(SYS_SECCOMP, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_SPEC_ALLOW,
                     ctypes.byref(_Filter(len(PROGRAM) // 8, PROGRAM))),
    )  # fmt: skip


def _program() -> bytes:
    """Return the filter, in classic BPF: it allows what it does not name."""
    refused = REFUSE | errno.EPERM
    code: list[tuple[int, int, int, int]] = [
        (LOAD, 0, 0, ARCHITECTURE),
        (EQUAL, 1, 0, AUDIT_ARCH_X86_64),
        (RETURN, 0, 0, refused),
        (LOAD, 0, 0, NUMBER),
        (AT_LEAST, 0, 1, X32),
        (RETURN, 0, 0, refused),
    ]
    for number in DENIED:
        code += [(EQUAL, 0, 1, number), (RETURN, 0, 0, refused)]
    code += [
        (EQUAL, 0, 1, SYS_CLONE3), (RETURN, 0, 0, REFUSE | errno.ENOSYS),  # its flags lie in memory; libc has clone()
        (EQUAL, 0, 4, SYS_CLONE),
        (LOAD, 0, 0, FIRST),
        (ANY_OF, 0, 1, NAMESPACES), (RETURN, 0, 0, refused),
        (RETURN, 0, 0, ALLOW),
        (EQUAL, 1, 0, SYS_SOCKET), (RETURN, 0, 0, ALLOW),
        (LOAD, 0, 0, FIRST),
        (EQUAL, 5, 0, AF_INET), (EQUAL, 4, 0, AF_INET6), (EQUAL, 0, 4, AF_UNIX),
        (LOAD, 0, 0, SECOND), (AND, 0, 0, SOCK_TYPES),
        (EQUAL, 0, 1, SOCK_DGRAM), (RETURN, 0, 0, ALLOW),
        (RETURN, 0, 0, refused),
    ]  # fmt: skip
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


PROGRAM = _program()


def _loader(program: str) -> str:
    """Return the loader that an ELF program names (elf(5)), or "" if it is static or not a program."""
    try:
        descriptor = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
        head = os.read(descriptor, 4096)
        os.close(descriptor)
        (at,), (size, count) = struct.unpack_from("<Q", head, 32), struct.unpack_from("<HH", head, 54)
        for number in range(count):
            kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", head, at + number * size)
            if kind == PT_INTERP:
                return os.fsdecode(head[offset : offset + length].rstrip(b"\0"))
    except (OSError, OverflowError, struct.error):  # not a program: execve(2) fails
        pass
    return ""


def _libraries() -> list[str]:
    """Return this process's C library, and beside it libgcc: a UML kernel needs no other.

    7.x ends its threads by pthread_cancel(3), which loads libgcc (arch/um/os-Linux/helper.c os_kill_helper_thread()).
    """
    paths = {line.split(maxsplit=5)[-1].rstrip() for line in read_file("/proc/self/maps").splitlines()}
    of_c = sorted(path for path in paths if os.path.basename(path).startswith("libc.so."))  # noqa: PTH119
    beside = (os.path.join(os.path.dirname(path), "libgcc_s.so.1") for path in of_c)  # noqa: PTH118, PTH120
    return [*of_c, *(path for path in beside if os.path.exists(path))]  # noqa: PTH110


LIBRARIES = _libraries()
ALWAYS = (CPU, *LIBRARIES, PRIVATE, *DEVICES)  # in every kernel's root directory
