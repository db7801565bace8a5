"""What the guest kernel prints, kept in memory that ends with the lab."""

import os
import re

ANSI_OR_LEVEL = re.compile(r"\x1b\[[0-9;]*m|^<\d>|\r", re.MULTILINE)
PANIC = re.compile(r"Kernel panic - not syncing: .*|Kernel tried to .*|BUG: .*|Oops: .*")
TAIL_LINES = 12
AFTER_PANIC_LINES = 1  # whose task it was; then come the stack's bytes


class Console:
    """The guest's console log: an unlinked file in memory that the kernel writes to directly.

    A file, not a pipe: nobody has to read it for the guest to run on. UML grumbles once that it cannot poll a file
    (arch/um/os-Linux/irq.c, epoll_ctl(2) EPERM); nothing is ever read from it.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Make a log; or read the one behind a descriptor that a lab has kept."""
        self.descriptor = descriptor if descriptor >= 0 else os.memfd_create("skblab-console", os.MFD_CLOEXEC)
        # Append: the kernel's console and its stderr are two writers.
        self._append = os.open(f"/proc/self/fd/{self.descriptor}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    @property
    def writer(self) -> int:
        """The descriptor to hand to the kernel."""
        return self._append

    def text(self) -> str:
        """Return all that was printed so far, without colours and log levels."""
        size = os.fstat(self.descriptor).st_size
        return ANSI_OR_LEVEL.sub("", os.pread(self.descriptor, size, 0).decode(errors="replace"))

    def panic(self) -> str | None:
        """Return the line that says why the kernel died, if it said so."""
        found = PANIC.search(self.text())
        return found.group(0) if found else None

    def evidence(self) -> str:
        """Return what an error should show: the panic's line and what led to it, or the last lines."""
        lines = self.text().splitlines()
        panic = self.panic()
        end = len(lines)
        if panic:  # what follows is a call trace
            end = next(number for number, line in enumerate(lines, start=1) if panic in line)
        tail = "\n".join(lines[max(end - TAIL_LINES, 0) : end + AFTER_PANIC_LINES])
        return (f"{panic}\n" if panic else "") + "console tail:\n" + (tail or "(nothing was printed)")

    def close(self) -> None:
        """Forget the log."""
        os.close(self.descriptor)
        os.close(self._append)
