r"""The trace file: append-only, so that what a killed writer leaves is whole up to its last whole record.

A file is ``skblab\\0\\1`` and then chunks: four letters, the payload's size in bytes (both 4 bytes, little-endian),
the payload, and zeros up to a multiple of 8 bytes. ``META`` is a JSON object, the first chunk: the kernel, the
functions by their points' numbers, the clock. ``STEP``, one behind the other, are records as the agent wrote them
(kernel/agent/agent_abi.h: struct agent_step, agent_return, agent_kin). ``TOLD`` is a JSON object: what a rule did to
a packet. ``END `` is a JSON object, the last chunk: what was lost, and the command's exit status. Others are to be
skipped.
"""

import json
import os
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from skblab.errors import TraceError

MAGIC = b"skblab\0\1"
VERSION = 1  # of what the chunks have in them
CHUNK = struct.Struct("<4sI")
META, STEP, TOLD, END = b"META", b"STEP", b"TOLD", b"END "
ALIGNMENT = 8
READ_BYTES = 1 << 20


class TraceWriter:
    """Write a trace file; from any thread."""

    def __init__(self, path: Path) -> None:
        """Begin the file.

        :raises TraceError: it cannot be written
        """
        self.path = path
        self._lock = threading.Lock()
        try:
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise TraceError(f"cannot write {path}", found=error.strerror or "") from error
        self.failed: OSError | None = None
        self.grown = threading.Event()
        self._append(MAGIC)

    def steps(self, records: memoryview) -> None:
        """Append records of the ring of steps; of a disk that is full, ``failed`` tells."""
        self._chunk(STEP, records)

    def tell(self, kind: bytes, fields: dict[str, Any]) -> None:
        """Append a JSON object."""
        self._chunk(kind, json.dumps(fields, separators=(",", ":")).encode())

    def close(self) -> None:
        """Close the file; what is told later is not written."""
        with self._lock:
            os.close(self._fd)
            self._fd = -1

    def _chunk(self, kind: bytes, payload: bytes | memoryview) -> None:
        self._append(CHUNK.pack(kind, len(payload)), payload, bytes(-len(payload) % ALIGNMENT))

    def _append(self, *pieces: bytes | memoryview) -> None:
        left = [memoryview(piece) for piece in pieces if len(piece)]
        with self._lock:
            try:
                while left and self._fd >= 0 and not self.failed:
                    written = os.writev(self._fd, left)
                    while left and written >= len(left[0]):
                        written -= len(left.pop(0))
                    if left:
                        left[0] = left[0][written:]
            except OSError as error:
                self.failed = error
        self.grown.set()


class Tail:
    """The chunks of a trace file that is being written."""

    def __init__(self, path: Path) -> None:
        """Open the file, whose writer has begun it."""
        self._file = path.open("rb", buffering=0)
        self._file.seek(len(MAGIC))
        self._content = memoryview(b"")

    def next(self) -> tuple[bytes, memoryview] | None:
        """Return the next whole chunk, or None while there is none."""
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
    """Read a trace file: each chunk's kind and payload; the last one may be cut off.

    :raises TraceError: there is no such file, or it is no trace
    """
    try:
        content = memoryview(path.read_bytes())
    except OSError as error:
        raise TraceError(f"cannot read {path}", found=error.strerror or "") from error
    if content[: len(MAGIC)] != MAGIC:
        found = "a trace of another version of skblab" if content[:6] == MAGIC[:6] else "it does not begin as one"
        raise TraceError(f"{path} is no trace of skblab", found=found, mend="skblab trace -o FILE writes one")
    place = len(MAGIC)
    while place + CHUNK.size <= len(content):
        kind, size = CHUNK.unpack_from(content, place)
        place += CHUNK.size
        yield kind, content[place : place + size]
        place += size + -size % ALIGNMENT
