"""Explain why gdb cannot attach to the guest's kernel, and remove the breakpoints that a killed gdb leaves behind."""

import logging
import os
import resource
import struct
from pathlib import Path

from skblab.debugger.inside import wire
from skblab.errors import DebuggerError
from skblab.guest.boot import Guest
from skblab.host.gdb import Gdb

log = logging.getLogger(__name__)

BREAKPOINT = b"\xcc"
SECCOMP_FILTER = "2"
PT_LOAD, PF_X, PF_R = 1, 1, 4  # elf(5)


def environment(gdb: Gdb, guest: Guest) -> dict[str, str]:
    """Return gdb's environment, with what the modules that it loads read there."""
    return {**gdb.env, wire.CLOCK: wire.FROZEN if guest.frozen else ""}


def explain(error: DebuggerError, pid: int) -> DebuggerError:
    """Return a better error for a failed attach, by its evidence: another tracer, yama, seccomp."""
    status = dict(
        line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
    )
    tracer = status.get("TracerPid", "0")
    yama = Path("/proc/sys/kernel/yama/ptrace_scope")
    what = f"gdb may not attach to the guest kernel (pid {pid})"
    if tracer != "0":
        name = Path(f"/proc/{tracer}/comm").read_text().strip()
        return DebuggerError(
            what, found=f"{name} (pid {tracer}) traces it already", hint=f"end that one first: kill {tracer}"
        )
    if yama.exists() and yama.read_text().strip() == "3":
        return DebuggerError(what, found=f"{yama} is 3: nobody may trace anything until the next boot of this machine",
                             hint="boot with kernel.yama.ptrace_scope=2 or less")  # fmt: skip
    own = Path("/proc/self/status").read_text()
    if f"Seccomp:\t{SECCOMP_FILTER}" in own:
        return DebuggerError(
            what,
            found=f"{error.what}\na seccomp filter is on this process, and may forbid ptrace(2)",
            hint="in a container: docker run --security-opt seccomp=unconfined, or --cap-add SYS_PTRACE",
        )
    limited = resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY  # gdb takes 0.5 GB
    hint = "ulimit -v unlimited; skblab doctor" if limited else "skblab doctor"
    return DebuggerError(what, found=f"{error.what}\n{error.found}".strip(), hint=hint)


def first_byte(pid: int, address: int) -> bytes:
    """Return the byte at an address of the guest's text, where gdb will put its breakpoint."""
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, 1, address)
    finally:
        os.close(descriptor)


def restore_text(pid: int, first_bytes: dict[int, bytes]) -> None:
    """Restore the first bytes of functions in which a killed gdb left its breakpoint.

    At a stop, gdb has removed its breakpoints. While the kernel runs they are in place: if gdb is killed then, the next
    packet causes a panic ("Kernel mode signal 5", arch/um/kernel/trap.c relay_signal()).
    """
    try:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        log.warning("cannot look for breakpoints left in the guest: %s", error)
        return
    try:
        for address, original in first_bytes.items():
            if os.pread(descriptor, 1, address) == BREAKPOINT:
                os.pwrite(descriptor, original, address)
    finally:
        os.close(descriptor)


def symbols_of(modules: dict[str, dict[str, int]]) -> list[str]:
    """Return gdb's arguments that load modules' symbols: each module's file and the addresses of its code sections."""
    words = []
    for file, sections in modules.items():
        places = " ".join(f"-s {name} {address:#x}" for name, address in sections.items())
        # By Python: the command itself would ask for confirmation.
        command = f'add-symbol-file "{file}" {places}'
        words += ["-ex", f"python gdb.execute({command!r}, to_string=True)"]
    return words


def restore_all(pid: int, kernel: Path) -> None:
    """Restore every byte of the kernel's code where a killed gdb left a breakpoint of its user.

    A difference right behind another one is not a breakpoint but the agent's call at a function's entry.
    """
    with kernel.open("rb") as file:
        header = file.read(64)
        offset, size, count = *struct.unpack_from("<Q", header, 32), *struct.unpack_from("<HH", header, 54)
        file.seek(offset)
        segments = [struct.unpack_from("<IIQQQQ", file.read(size)) for _ in range(count)]
        kind, flags, at, address, _, length = next(one for one in segments if one[:2] == (PT_LOAD, PF_R | PF_X))
        del kind, flags
        file.seek(at)
        code = file.read(length)
    try:
        descriptor = os.open(f"/proc/{pid}/mem", os.O_RDONLY | os.O_CLOEXEC)
        try:
            now = os.pread(descriptor, length, address)
        finally:
            os.close(descriptor)
    except OSError as error:
        log.warning("cannot look for breakpoints left in the guest: %s", error)
        return
    left = {}
    found = now.find(BREAKPOINT)
    while found >= 0:
        near = slice(max(found - 4, 0), found)
        if code[found] != now[found] and code[near] == now[near]:
            left[address + found] = code[found : found + 1]
        found = now.find(BREAKPOINT, found + 1)
    restore_text(pid, left)
