"""Whether a program of a guest computes and calls nothing; on a slow or busy machine, a guest only seems so."""

import time
from pathlib import Path

ALONE_S = 1.0  # of a processor's time


class Spin:
    """Looks at the process of a guest's kernel, and at its programs, which are its children on this machine.

    The kernel sleeps while one of them computes: a call, a fault or a signal of a program's wakes it, whether programs
    run under ptrace or under seccomp (arch/um/os-Linux/skas/process.c userspace()).
    """

    def __init__(self, pid: int) -> None:
        self._process = Path(f"/proc/{pid}")
        self._children = self._process / "task" / str(pid) / "children"
        self._seen = ("", 0.0)

    def is_there(self) -> bool:
        """Whether programs have computed for ALONE_S while the kernel slept; it is looked at for so long at least."""
        status = (self._process / "status").read_text()
        if "\nTracerPid:\t0\n" not in status:  # gdb holds the kernel
            return False
        woken = status.partition("\nvoluntary_ctxt_switches:")[2].split()[0]
        computed_s = sum(map(_computed_s, self._children.read_text().split()))
        if woken == self._seen[0] and computed_s >= self._seen[1] + ALONE_S:
            self._seen = ("", 0.0)
            return True
        if woken != self._seen[0]:
            self._seen = (woken, computed_s)
        return False


def _computed_s(pid: str) -> float:
    """Return a process's time on a processor (its clock: kernel/time/posix-cpu-timers.c, clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime(~int(pid) << 3 | 2)
    except OSError:  # it has ended
        return 0.0
