r"""The trace file. It is append-only: after a writer was killed, everything up to the last whole record can be read.

A file is ``skblab\\0\\1`` and then chunks: four letters, the payload's size in bytes (both 4 bytes, little-endian),
the payload, and zeros up to a multiple of 8 bytes. ``META`` is a JSON object, the first chunk: the kernel, the
functions by their numbers, the clock. The payloads of ``STEP`` are records as the agent wrote them, one after another
(kernel/agent/agent_abi.h: struct agent_step, agent_return, agent_kin). ``RULE`` is a JSON object: a rule's verdict on a
packet. ``END `` is a JSON object, the last chunk: the counts of what was lost, and the command's exit status. Behind
each of them is ``SUM ``: zlib's CRC-32 of all bytes of that chunk, as 8 bytes. A reader skips others.
"""

import errno
import json
import logging
import os
import stat
import struct
import tempfile
import threading
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from skblab.errors import CannotWrite, TraceError
from skblab.files import cannot_write, to_write

log = logging.getLogger(__name__)

MAGIC = b"skblab\0\1"
VERSION = 2  # of the chunks' contents
CHUNK = struct.Struct("<4sI")
META, STEP, RULE, END = b"META", b"STEP", b"RULE", b"END "
SUM = struct.Struct("<8sQ")  # a whole chunk
OF_SUM = CHUNK.pack(b"SUM ", 8)
ALIGNMENT = 8
READ_BYTES = 1 << 20


class TraceWriter:
    """Write a trace file; from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        """Begin the file. Without a path it has no name, and is gone once it is closed.

        :raises CannotWrite: it cannot be written, or somebody else writes it
        """
        self._lock = threading.Lock()
        self._fd = _named(path) if path else _unnamed()
        self.path = path or Path(f"/proc/self/fd/{self._fd}")
        self._shown_path = path or Path(tempfile.gettempdir(), "(the trace)")
        self._ended = False
        self.failed: CannotWrite | None = None
        self.grown = threading.Event()
        self._append(MAGIC)

    def steps(self, records: memoryview) -> None:
        """Append records of the ring of steps. A failed write, as on a full disk, is logged and kept in ``failed``."""
        self._chunk(STEP, records)

    def write(self, kind: bytes, fields: dict[str, Any]) -> None:
        """Append a JSON object. Bytes of a command that are no text (os.fsdecode()) become "?"."""
        text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False)
        self._chunk(kind, text.encode(errors="replace"))

    def end(self) -> None:
        """Ignore everything that is written from now on."""
        with self._lock:
            self._ended = True

    def close(self) -> None:
        """Close the file."""
        self.end()
        os.close(self._fd)

    def _chunk(self, kind: bytes, payload: bytes | memoryview) -> None:
        head = CHUNK.pack(kind, len(payload))
        zeros = bytes(-len(payload) % ALIGNMENT)
        sums = zlib.crc32(zeros, zlib.crc32(payload, zlib.crc32(head)))
        self._append(head, payload, zeros, SUM.pack(OF_SUM, sums))

    def _append(self, *pieces: bytes | memoryview) -> None:
        with self._lock:
            if not (self._ended or self.failed):
                try:
                    _write(self._fd, pieces)
                except OSError as error:
                    self.failed = cannot_write(self._shown_path, error)
                    log.warning("%s\n  what was written before is whole; no more of the trace is kept", self.failed)
        self.grown.set()


def _unnamed() -> int:
    with tempfile.TemporaryFile(prefix="skblab-") as file:
        return os.dup(file.fileno())


def _named(path: Path) -> int:
    descriptor = to_write(path, os.O_RDWR | os.O_NONBLOCK | os.O_APPEND)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise cannot_write(path, OSError(errno.EINVAL, "it is no regular file: a trace is read while it is written"))
    return descriptor


def _write(descriptor: int, pieces: Sequence[bytes | memoryview]) -> None:
    """Write all pieces. Every view is released, for a view in an error's traceback would keep the ring mapped."""
    left = [memoryview(piece) for piece in pieces if len(piece)]
    try:
        while left:
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left[0])
                left.pop(0).release()
            if left:
                rest = left[0][written:]
                left[0].release()
                left[0] = rest
    finally:
        for view in left:
            view.release()


class Tail:
    """The chunks of a trace file that is being written."""

    def __init__(self, path: Path) -> None:
        """Open a file that its writer has begun."""
        self._file = path.open("rb", buffering=0)
        self._file.seek(len(MAGIC))
        self._content = memoryview(b"")

    def next(self) -> tuple[bytes, memoryview] | None:
        """Return the next whole chunk, or None if it is not there yet."""
        while True:
            if len(self._content) >= CHUNK.size:
                kind, size = CHUNK.unpack_from(self._content)
                end = CHUNK.size + size
                if len(self._content) >= end + -size % ALIGNMENT:
                    payload = self._content[CHUNK.size : end]
                    self._content = self._content[end + -size % ALIGNMENT :]
                    return kind, payload
            more = self._file.read(READ_BYTES)
            if not more:
                return None
            self._content = memoryview(bytes(self._content) + more)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_chunks(path: Path) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and payload of each chunk of a trace file; the last payload may be cut off.

    :raises TraceError: there is no such file, it is no trace, or it is damaged
    """
    yield from chunks_of(read_content(path))


def read_content(path: Path) -> memoryview:
    """Return the chunks of a trace file, one after another.

    :raises TraceError: there is no such file, or it is no trace
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(MAGIC))
            content = memoryview(file.read() if start == MAGIC else b"")
    except OSError as error:
        raise TraceError(f"cannot read {path}", found=error.strerror or "") from error
    if start != MAGIC:
        found = "a trace of another version of skblab" if start[:6] == MAGIC[:6] else "it does not begin as one"
        raise TraceError(f"{path} is no trace of skblab", found=found, hint="skblab trace -o FILE writes one")
    return content


def chunks_of(content: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yield the kind and payload of each chunk; the last payload may be cut off.

    Older files have no checksums. Where one chunk has, all have, but for the last one of a file that was cut off.

    :raises TraceError: a chunk is not as its checksum says
    """
    place, has_sums = 0, False
    while place + CHUNK.size <= len(content):
        kind, size = CHUNK.unpack_from(content, place)
        payload = content[place + CHUNK.size :][:size]
        begin, place = place, place + CHUNK.size + size + -size % ALIGNMENT
        if place + SUM.size <= len(content):
            letters, number = SUM.unpack_from(content, place)
            has_sums |= letters == OF_SUM
            if has_sums:
                if (letters, number) != (OF_SUM, zlib.crc32(content[begin:place])):
                    found = f"the chunk at byte {len(MAGIC) + begin} is not as its checksum says"
                    raise TraceError("the trace is damaged", found=found)
                place += SUM.size
        yield kind, payload
