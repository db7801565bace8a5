"""The console log of the guest's kernel, in memory that is freed with the lab."""

import codecs
import fcntl
import os
import re
import threading

from skblab.guest.complaint import Complaint, Complaints
from skblab.host.output import watch

# Colours, log levels and all terminal control sequences: the guest may print anything.
NO_TEXT = re.compile(r"\x1b\[[0-9;]*m|^<\d>|[\x00-\x08\x0b-\x1f\x7f-\x9f]+", re.MULTILINE)
MOST_BYTES = 16 << 20  # read of the log, its end: the guest can make the file as long as it likes
TAIL_LINES = 12
AFTER_PANIC_LINES = 1  # the task's name; the stack's bytes follow


class Console:
    """The guest's console log: an unlinked file in memory to which the kernel writes directly.

    A file, not a pipe: the guest runs on without a reader. UML prints one warning that it cannot poll a file
    (arch/um/os-Linux/irq.c, epoll_ctl(2) EPERM); it never reads from the console.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Make a log, or open a kept lab's log by its descriptor."""
        if descriptor < 0:
            descriptor = os.memfd_create("skblab-console", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # the guest cannot shorten the log
        self.descriptor = descriptor
        # Append: the kernel's console and its stderr are two writers.
        self._append = os.open(f"/proc/self/fd/{self.descriptor}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._complaints = Complaints()
        self._read_bytes = 0  # offset up to which complaints were looked for
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._reading = threading.Lock()

    def like(self) -> "Console":
        """Return another log that begins with what this one has."""
        other = Console()
        os.copy_file_range(self.descriptor, other.descriptor, os.fstat(self.descriptor).st_size, 0, 0)
        return other

    @property
    def writer(self) -> int:
        """The descriptor for the kernel."""
        return self._append

    def text(self) -> str:
        """Return the last MOST_BYTES of the log, without colours, log levels and control characters."""
        size = os.fstat(self.descriptor).st_size
        printed = os.pread(self.descriptor, min(size, MOST_BYTES), max(size - MOST_BYTES, 0))
        return NO_TEXT.sub("", printed.decode(errors="replace"))

    def complaints(self) -> tuple[Complaint, ...]:
        """Return the kernel's complaints so far; of a closed log, those until then."""
        with self._reading:
            self._read()
            return self._complaints.all

    def complete_complaints(self, *, settled: bool) -> tuple[tuple[Complaint, ...], bool]:
        """Return the finished complaints, and whether others are open. *settled*: finish the open ones."""
        with self._reading:
            self._read()
            if settled:
                self._complaints.settle()
            return self._complaints.complete, self._complaints.open

    def unreported_complaints(self) -> tuple[Complaint, ...]:
        """Return the complaints that came while no controller had the lab."""
        return self.complaints()[os.lseek(self.descriptor, 0, os.SEEK_CUR) :]

    def watch(self) -> int:
        """Return a descriptor that becomes readable when more is printed (inotify(7)); the caller closes it.

        :raises MissingPrerequisite: this user may have no more inotify instances
        """
        return watch(self.descriptor, "the guest's console")

    def _read(self) -> None:
        if self.descriptor < 0:
            return
        size = os.fstat(self.descriptor).st_size
        self._read_bytes = max(self._read_bytes, size - MOST_BYTES)
        data = os.pread(self.descriptor, size - self._read_bytes, self._read_bytes)
        self._read_bytes += len(data)
        self._complaints.feed(self._decode(data))

    def panic(self) -> str | None:
        """Return the panic's line, or None."""
        return next((one.title for one in self.complaints() if one.kind == "panic"), None)

    def evidence(self) -> str:
        """Return the lines for an error: the panic's and those before it, or the last ones."""
        lines = self.text().splitlines()
        panic = self.panic()
        end = len(lines)
        if panic:  # a call trace follows
            end = next((number for number, line in enumerate(lines, start=1) if panic in line), end)
        tail = "\n".join(lines[max(end - TAIL_LINES, 0) : end + AFTER_PANIC_LINES])
        return (f"{panic}\n" if panic else "") + "console tail:\n" + (tail or "(nothing was printed)")

    def close(self) -> None:
        """Close the log; keep the complaints in it."""
        with self._reading:
            self._read()
            # The file offset, which all controllers share and nobody reads at, counts the complaints already reported.
            reported = max(len(self._complaints.all), os.lseek(self.descriptor, 0, os.SEEK_CUR))
            os.lseek(self.descriptor, reported, os.SEEK_SET)
            os.close(self.descriptor)
            os.close(self._append)
            self.descriptor = -1
