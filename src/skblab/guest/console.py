"""What the guest kernel prints, kept in memory that ends with the lab."""

import codecs
import ctypes
import fcntl
import os
import re
import threading

from skblab.errors import MissingPrerequisite
from skblab.guest.complaint import Complaint, Complaints
from skblab.host.link import libc

# Colours, log levels, and all that a terminal would take for an order: the guest prints what it likes.
NO_TEXT = re.compile(r"\x1b\[[0-9;]*m|^<\d>|[\x00-\x08\x0b-\x1f\x7f-\x9f]+", re.MULTILINE)
MOST_BYTES = 16 << 20  # of the log are read, its last ones: the guest can make the file as long as it likes
IN_MODIFY = 2  # sys/inotify.h
TAIL_LINES = 12
AFTER_PANIC_LINES = 1  # whose task it was; then come the stack's bytes


class Console:
    """The guest's console log: an unlinked file in memory that the kernel writes to directly.

    A file, not a pipe: nobody has to read it for the guest to run on. UML grumbles once that it cannot poll a file
    (arch/um/os-Linux/irq.c, epoll_ctl(2) EPERM); nothing is ever read from it.
    """

    def __init__(self, descriptor: int = -1) -> None:
        """Make a log; or read the one behind a descriptor that a lab has kept."""
        if descriptor < 0:
            descriptor = os.memfd_create("skblab-console", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)  # what was said cannot be taken back
        self.descriptor = descriptor
        # Append: the kernel's console and its stderr are two writers.
        self._append = os.open(f"/proc/self/fd/{self.descriptor}", os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._complaints = Complaints()
        self._read_bytes = 0  # of what was printed, for complaints
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._reading = threading.Lock()

    @property
    def writer(self) -> int:
        """The descriptor to hand to the kernel."""
        return self._append

    def text(self) -> str:
        """Return what was printed so far, MOST_BYTES at most, without colours, log levels and control characters."""
        size = os.fstat(self.descriptor).st_size
        printed = os.pread(self.descriptor, min(size, MOST_BYTES), max(size - MOST_BYTES, 0))
        return NO_TEXT.sub("", printed.decode(errors="replace"))

    def complaints(self) -> tuple[Complaint, ...]:
        """Return what the kernel has complained of so far; of a log that is closed, what it had till then."""
        with self._reading:
            self._read()
            return self._complaints.all

    def complete_complaints(self, *, settled: bool) -> tuple[tuple[Complaint, ...], bool]:
        """Return those whose end has come, and whether others are open; *settled*: nothing more is printed of them."""
        with self._reading:
            self._read()
            if settled:
                self._complaints.settle()
            return self._complaints.complete, self._complaints.open

    def untold_complaints(self) -> tuple[Complaint, ...]:
        """Return those that came while no controller had the lab."""
        return self.complaints()[os.lseek(self.descriptor, 0, os.SEEK_CUR) :]

    def watch(self) -> int:
        """Return a descriptor that can be read whenever more has been printed (inotify(7)); the caller closes it.

        :raises MissingPrerequisite: this user may have no more of them
        """
        descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if descriptor < 0:
            raise MissingPrerequisite(
                "the guest's console cannot be watched", found=os.strerror(ctypes.get_errno()),
                hint="sysctl -w fs.inotify.max_user_instances=1024   (as root)",
            )  # fmt: skip
        libc.inotify_add_watch(descriptor, f"/proc/self/fd/{self.descriptor}".encode(), IN_MODIFY)
        return int(descriptor)

    def _read(self) -> None:
        if self.descriptor < 0:
            return
        size = os.fstat(self.descriptor).st_size
        self._read_bytes = max(self._read_bytes, size - MOST_BYTES)
        data = os.pread(self.descriptor, size - self._read_bytes, self._read_bytes)
        self._read_bytes += len(data)
        self._complaints.feed(self._decode(data))

    def panic(self) -> str | None:
        """Return the line that says why the kernel died, if it said so."""
        return next((one.title for one in self.complaints() if one.kind == "panic"), None)

    def evidence(self) -> str:
        """Return what an error should show: the panic's line and what led to it, or the last lines."""
        lines = self.text().splitlines()
        panic = self.panic()
        end = len(lines)
        if panic:  # what follows is a call trace
            end = next((number for number, line in enumerate(lines, start=1) if panic in line), end)
        tail = "\n".join(lines[max(end - TAIL_LINES, 0) : end + AFTER_PANIC_LINES])
        return (f"{panic}\n" if panic else "") + "console tail:\n" + (tail or "(nothing was printed)")

    def close(self) -> None:
        """Forget the log, but for the complaints in it."""
        with self._reading:
            self._read()
            # Nobody reads at the place in the file, which all who have it share: it counts what has been heard.
            told = max(len(self._complaints.all), os.lseek(self.descriptor, 0, os.SEEK_CUR))
            os.lseek(self.descriptor, told, os.SEEK_SET)
            os.close(self.descriptor)
            os.close(self._append)
            self.descriptor = -1
