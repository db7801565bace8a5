"""The stdin, stdout and stderr of a guest command: pipes, files, or pipes to which a thread copies.

In virtual time, output is copied between two steps of the guest's time: how fast somebody reads changes nothing then.
"""

import contextlib
import io
import os
import stat
import subprocess
import threading
from typing import IO, TYPE_CHECKING

from skblab.clock import Clock
from skblab.files import cannot_write
from skblab.host.process import Stream, interruptible

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

AT_ONCE_BYTES = 1 << 16


class Pipe(io.FileIO):
    """Our end of a command's pipe in virtual time: who waits at it lets the guest run."""

    def __init__(self, descriptor: int, mode: str, clock: Clock) -> None:
        super().__init__(descriptor, mode)
        self._clock = clock

    def read(self, size: int | None = -1, /) -> bytes:
        """Read up to *size* bytes, or all."""
        if size is None or size < 0:
            return self.readall()
        self._clock.wait([self])
        return super().read(size) or b""

    def readall(self) -> bytes:
        """Read to the end of file."""
        return b"".join(iter(lambda: self.read(AT_ONCE_BYTES), b""))

    def readinto(self, buffer: "WriteableBuffer", /) -> int | None:
        """Read into a buffer; return how many bytes."""
        self._clock.wait([self])
        return super().readinto(buffer)

    def write(self, data: "ReadableBuffer", /) -> int:
        """Write; return how many bytes were written."""
        self._clock.wait((), None, [self])
        written = super().write(data)
        self._clock.given()
        return written or 0

    def close(self) -> None:
        """Close; the guest sees the end of file."""
        if not self.closed:
            super().close()
            self._clock.given()


class Streams:
    """The descriptors of a command's stdin, stdout and stderr, and our ends of them.

    :param clock: the guest's
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.given: list[int] = []  # for the guest; closed here once they are sent
        self._carried: list[tuple[int, int, bool]] = []  # from, to, whether it is the command's output

    def add(self, stream: Stream, standard: int) -> IO[bytes] | None:
        """Add a stream, as subprocess.Popen takes it; return our end of a pipe."""
        if stream == subprocess.STDOUT and standard == 2:
            self.given.append(os.dup(self.given[1]))
            return None
        if stream == subprocess.DEVNULL:
            self.given.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
            return None
        if stream == subprocess.PIPE:
            mode = "rb" if standard else "wb"
            if self._clock.is_virtual:
                return Pipe(self._pipe(standard), mode, self._clock)
            return os.fdopen(self._pipe(standard), mode, buffering=0)
        descriptor = standard if stream is None else stream if isinstance(stream, int) else stream.fileno()
        lent = _lend(descriptor, os.O_WRONLY if standard else os.O_RDONLY)
        if lent is not None and standard and self._clock.is_virtual and not stat.S_ISREG(os.fstat(lent).st_mode):
            os.close(lent)
            lent = None
        if lent is not None:
            self.given.append(lent)
        else:
            ours, theirs = self._pipe(standard), os.dup(descriptor)
            self._carried.append((ours, theirs, True) if standard else (theirs, ours, False))
        return None

    def _pipe(self, standard: int) -> int:
        reads, writes = os.pipe2(os.O_CLOEXEC)
        self.given.append(writes if standard else reads)
        return reads if standard else writes

    def carry(self) -> "list[threading.Thread | Drain]":
        """Start to copy; return who copies the command's output, which ends with it."""
        relays: list[threading.Thread | Drain] = []
        for origin, target, said in self._carried:
            if said and self._clock.is_virtual:
                drain = Drain(origin, target, self._clock)
                self._clock.attend(drain)
                relays.append(drain)
                continue
            thread = threading.Thread(target=relay, args=(origin, target), daemon=True)
            thread.start()
            if said:
                relays.append(thread)
        self._carried.clear()
        return relays

    def sent(self) -> None:
        """Close our copies of the guest's descriptors."""
        for descriptor in self.given:
            os.close(descriptor)
        self.given.clear()

    def close(self) -> None:
        """Close everything, because the command will not run."""
        self.sent()
        for origin, target, _ in self._carried:
            os.close(origin)
            os.close(target)
        self._carried.clear()


def _lend(descriptor: int, access: int) -> int | None:
    """Return a descriptor of the same file that the guest's kernel may make non-blocking, or None if it may not.

    O_NONBLOCK belongs to the open file description (fcntl(2)), which this process shares with others. So a pipe is
    opened again; a regular file, or a device that never blocks, needs no copy.
    """
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISFIFO(kind):
        try:
            return os.open(f"/proc/self/fd/{descriptor}", access | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:  # it has no reader, or belongs to another user
            return None
    if stat.S_ISREG(kind) or (stat.S_ISCHR(kind) and not os.isatty(descriptor)):
        return os.dup(descriptor)
    return None


class Drain:
    """Copies what a command has said, whenever the guest is at rest; a listener of its clock."""

    def __init__(self, origin: int, target: int, clock: Clock) -> None:
        self._origin, self._target, self._clock = origin, target, clock
        self._copying = threading.Lock()
        self._refused: OSError | None = None
        os.set_blocking(origin, False)

    def __call__(self) -> bool:
        """Copy; return whether more may come."""
        with self._copying:
            while self._origin >= 0:
                try:
                    data = os.read(self._origin, AT_ONCE_BYTES)
                except BlockingIOError:
                    return True
                if not (data and self._write(data)):
                    os.close(self._origin)
                    os.close(self._target)
                    self._origin = -1
                self._clock.given()  # a writer may have waited for room
            return False

    def _write(self, data: bytes) -> bool:
        """Write; return False where that is refused: the command's pipe breaks, too."""
        left = memoryview(data)
        try:
            while left:
                with interruptible():  # nobody may read it
                    written = os.write(self._target, left)
                left = left[written:]
        except BrokenPipeError:
            return False
        except OSError as error:
            self._refused = error
            return False
        return True

    def join(self) -> None:
        """Copy what is left, because the command has ended.

        :raises CannotWrite: what it has said could not be written; once
        """
        self()
        refused, self._refused = self._refused, None
        if refused:
            raise cannot_write("what the command says", refused)


def relay(origin: int, target: int) -> None:
    """Copy bytes until end of file or a broken pipe."""
    with contextlib.suppress(OSError), open(origin, "rb", 0) as reads, open(target, "wb", 0) as writes:
        while data := reads.read(AT_ONCE_BYTES):
            left = memoryview(data)
            while left:
                left = left[writes.write(left) :]
