"""Memory and a socket shared with the agent: the only place that touches them."""

import contextlib
import mmap
import os
import select
import socket
import struct
import threading
from collections.abc import Iterator

from skblab.agent import abi
from skblab.errors import GuestLost, Timeout

COMMANDS_BYTES = 1 << 20
EVENTS_BYTES = 16 << 20
PAGE = 4096
WORD = struct.Struct("=Q")


class Channel:
    """One lab's memory and socket. The agent's ends are handed over at boot, and then are its alone."""

    def __init__(self) -> None:
        offset = -(-abi.SHARED_BYTES // PAGE) * PAGE
        size = offset + COMMANDS_BYTES + EVENTS_BYTES
        self.memory_fd = os.memfd_create("skblab-agent", os.MFD_CLOEXEC)
        os.ftruncate(self.memory_fd, size)
        self._memory = mmap.mmap(self.memory_fd, size)
        self._commands, self._events = offset, offset + COMMANDS_BYTES
        for name, value in (
            ("memory_bytes", size),
            ("commands_offset", self._commands), ("commands_bytes", COMMANDS_BYTES),
            ("events_offset", self._events), ("events_bytes", EVENTS_BYTES),
        ):  # fmt: skip
            self._write(name, value)
        self._socket, self.guest_socket = socket.socketpair()
        self._socket.setblocking(False)  # noqa: FBT003
        self._writing = threading.Lock()

    def handed_over(self) -> None:
        """Close our copies of what the guest has now: its end is then the end of both."""
        self.guest_socket.close()
        os.close(self.memory_fd)
        self.memory_fd = -1

    def hang_up(self) -> None:
        """End the conversation: the agent lets everything go, and who waits here is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of memory and socket; nobody may wait here any more."""
        self._socket.close()
        self.guest_socket.close()
        if self.memory_fd >= 0:
            os.close(self.memory_fd)
        self._memory.close()

    def _read(self, name: str) -> int:
        value: int = WORD.unpack_from(self._memory, abi.OFFSETS[name])[0]
        return value

    def _write(self, name: str, value: int) -> None:
        WORD.pack_into(self._memory, abi.OFFSETS[name], value)

    @property
    def ready(self) -> bool:
        """Whether the agent is there."""
        return self._read("magic") == abi.MAGIC

    @property
    def lost(self) -> int:
        """How many events found the ring full."""
        return self._read("lost")

    @property
    def held(self) -> int:
        """How many packets are set aside now."""
        return self._read("held")

    @property
    def probes(self) -> int:
        """How many functions are patched now."""
        return self._read("probes")

    @property
    def stop_address(self) -> int:
        """Where the agent goes for the verdict "stop"."""
        return self._read("stop_address")

    @property
    def measured_address(self) -> int:
        """Where the agent has a function that does nothing, to be probed and called."""
        return self._read("measured_address")

    def host_ns(self, guest_ns: int) -> int:
        """Return the host's CLOCK_MONOTONIC of a moment on the guest's clock."""
        return guest_ns - self._read("clock_guest_ns") + self._read("clock_host_ns")

    def counts(self, rule: int) -> abi.Counts:
        """Return what became of a rule's packets."""
        return abi.Counts(
            *abi.Counts.LAYOUT.unpack_from(self._memory, abi.OFFSETS["counts"] + rule * abi.Counts.LAYOUT.size)
        )

    def send(self, record: bytes) -> None:
        """Put one command into the ring and ring.

        :raises Timeout: the agent does not take its commands; a guest that is stopped takes none
        :raises GuestLost: the guest kernel is gone
        """
        with self._writing:
            head, size = self._read("commands_head"), COMMANDS_BYTES
            left = size - head % size
            needed = len(record) + (left if left < len(record) else 0)
            if head + needed - self._read("commands_tail") > size:
                raise Timeout("the agent does not take its commands", found="the ring of commands is full")
            if left < len(record):
                abi.RECORD.pack_into(self._memory, self._commands + head % size, left, 0, 0)
                head += left
            place = self._commands + head % size
            self._memory[place : place + len(record)] = record
            self._write("commands_head", head + len(record))
        try:
            self._socket.send(b"\0")
        except BlockingIOError:  # it has been rung enough
            return
        except OSError:
            raise GuestLost("the agent is gone with the guest kernel") from None

    def wait(self, timeout_s: float | None) -> bool:
        """Wait until there are events; whether there are.

        :raises GuestLost: the other end is closed
        """
        with self._writing:  # a lock's instruction is a barrier: "I wait" is visible before the head is read again
            self._write("host_waits", 1)
        if self._read("events_head") != self._read("events_tail"):
            return True
        if not select.select([self._socket], [], [], timeout_s)[0]:
            return False
        with contextlib.suppress(BlockingIOError):
            if not self._hear():
                raise GuestLost("the agent is gone with the guest kernel")
        return self._read("events_head") != self._read("events_tail")

    def _hear(self) -> bytes:
        try:
            return self._socket.recv(4096)
        except ConnectionError:
            return b""

    def events(self) -> Iterator[abi.Hit | abi.Done | abi.End]:
        """Take the events that are there."""
        tail, head = self._read("events_tail"), self._read("events_head")
        while tail != head:
            place = self._events + tail % EVENTS_BYTES
            size, kind, _ = abi.RECORD.unpack_from(self._memory, place)
            record = self._memory[place : place + size] if kind else b""
            tail += size
            self._write("events_tail", tail)
            if kind:
                yield abi.decode(record)
