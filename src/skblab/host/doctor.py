"""What this machine allows and lacks: a finding for each question, with the command that provides what is missing."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skblab.errors import MissingPrerequisite, SkblabError
from skblab.filter import compile_filter
from skblab.host.gdb import find_gdb
from skblab.host.namespace import Namespaces

PACKAGES = {
    "ping": "iputils-ping", "ip": "iproute2", "tc": "iproute2", "setpriv": "util-linux",
    "gcc": "gcc", "make": "make", "flex": "flex", "bison": "bison", "bc": "bc", "xz": "xz-utils", "objcopy": "binutils",
}  # fmt: skip
NEEDED_TO_RUN = ("ping", "ip", "tc")
GUEST_MEMORY = "/dev/shm"  # noqa: S108 - where UML keeps it
SYSTEM_PATH = ":/usr/sbin:/sbin"


@dataclass(frozen=True)
class Finding:
    """One answer: what was examined, whether it is good, what was found, a hint; ``needed``: no lab runs without it."""

    what: str
    good: bool
    found: str
    hint: str = ""
    needed: bool = True


def examine() -> Iterator[Finding]:
    """Examine everything that a lab and a kernel build need."""
    yield _proc()
    yield _namespaces()
    yield _tap()
    yield _ptrace()
    yield _gdb()
    yield _libpcap()
    for program, package in PACKAGES.items():
        path = shutil.which(program, path=os.environ.get("PATH", os.defpath) + SYSTEM_PATH)
        yield Finding(
            program, path is not None, path or "not installed", f"apt-get install {package}", program in NEEDED_TO_RUN
        )
    yield _memory()


def _proc() -> Finding:
    there = Path("/proc/self").exists()
    return Finding("/proc", there, "mounted" if there else "not mounted", "mount -t proc proc /proc   (as root)")


def _memory() -> Finding:
    try:
        memory = os.statvfs(GUEST_MEMORY)
    except OSError as error:
        return Finding(GUEST_MEMORY, False, error.strerror or "", f"mkdir -p {GUEST_MEMORY}   (as root)")  # noqa: FBT003
    free_mb = memory.f_bavail * memory.f_frsize / 1e6
    return Finding(
        GUEST_MEMORY, free_mb > 100, f"{free_mb:.0f} MB free", f"mount -o remount,size=50% {GUEST_MEMORY}   (as root)"
    )


def _namespaces() -> Finding:
    try:
        with Namespaces(f"doctor-{os.getpid()}", link="veth") as namespaces, Path(os.devnull).open("wb") as console:
            sees: dict[str, object] = {"readable": [], "writable": [], "tree": ""}
            _, fds = namespaces.request("boot", [console.fileno()], argv=["/bin/true"], stopped=False, sees=sees)
            for descriptor in fds:
                os.close(descriptor)
            return Finding("namespaces", True, "namespaces can be made, and a guest's kernel confined")  # noqa: FBT003
    except SkblabError as error:
        return Finding("namespaces", False, f"{error.what}: {error.found}", error.hint)  # noqa: FBT003
    except OSError as error:
        return Finding("namespaces", False, str(error), "see what else stands here")  # noqa: FBT003


def _tap() -> Finding:
    path = Path("/dev/net/tun")
    hint = "chmod 666 /dev/net/tun   (as root; without it the link is a veth pair, which never says ENOBUFS)"
    if not path.exists():
        return Finding("tap", False, f"no {path}", "modprobe tun   (as root)", needed=False)  # noqa: FBT003
    allowed = os.access(path, os.R_OK | os.W_OK)
    return Finding("tap", allowed, f"{path} can{'' if allowed else 'not'} be opened", hint, needed=False)


def _ptrace() -> Finding:
    path = Path("/proc/sys/kernel/yama/ptrace_scope")
    scope = path.read_text().strip() if path.exists() else "0"
    return Finding("ptrace", scope != "3", f"yama ptrace_scope {scope}" if path.exists() else "no yama",
                   "boot with kernel.yama.ptrace_scope=2 or less; UML itself needs ptrace")  # fmt: skip


def _libpcap() -> Finding:
    try:
        compile_filter("icmp")
    except MissingPrerequisite as error:
        return Finding("libpcap", False, error.what, error.hint, needed=False)  # noqa: FBT003
    return Finding("libpcap", True, "filters can be compiled")  # noqa: FBT003


def _gdb() -> Finding:
    try:
        gdb = find_gdb()
    except MissingPrerequisite as error:
        return Finding("gdb", False, error.what, error.hint)  # noqa: FBT003
    return Finding("gdb", True, f"{gdb.argv[0]} ({gdb.origin})")  # noqa: FBT003
