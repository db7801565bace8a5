"""The stdin, stdout and stderr of a guest command: pipes, files, or pipes to which a thread copies."""

import contextlib
import os
import stat
import subprocess
import threading
from typing import IO

from skblab.host.process import Stream

AT_ONCE_BYTES = 1 << 16


class Streams:
    """The descriptors of a command's stdin, stdout and stderr, and our ends of them."""

    def __init__(self) -> None:
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
            return os.fdopen(self._pipe(standard), "rb" if standard else "wb", buffering=0)
        descriptor = standard if stream is None else stream if isinstance(stream, int) else stream.fileno()
        lent = _lend(descriptor, os.O_WRONLY if standard else os.O_RDONLY)
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

    def carry(self) -> list[threading.Thread]:
        """Start the copying threads; return those of the command's output, which end with it."""
        threads = []
        for origin, target, said in self._carried:
            thread = threading.Thread(target=relay, args=(origin, target), daemon=True)
            thread.start()
            if said:
                threads.append(thread)
        self._carried.clear()
        return threads

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


def relay(origin: int, target: int) -> None:
    """Copy bytes until end of file or a broken pipe."""
    with contextlib.suppress(OSError), open(origin, "rb", 0) as reads, open(target, "wb", 0) as writes:
        while data := reads.read(AT_ONCE_BYTES):
            left = memoryview(data)
            while left:
                left = left[writes.write(left) :]
