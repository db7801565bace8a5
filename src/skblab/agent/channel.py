"""The memory and the socket shared with the agent. No other module touches them."""

import contextlib
import fcntl
import mmap
import os
import socket
import struct
import threading
import time
from collections.abc import Callable

from skblab.agent import abi
from skblab.clock import REAL, Clock, VirtualClock
from skblab.errors import AgentDamaged, GuestLost, Timeout
from skblab.host.waiting import Queue, wait

COMMANDS_BYTES = 1 << 20
EVENTS_BYTES = 16 << 20
STEPS_BYTES = 64 << 20
STEPS_AT_ONCE = 4 << 20  # taken in one piece, so that the agent soon has room again
STEPS_SOON_MS = 100  # a step is in the trace file within that time, also where the controller is killed then
PAGE = 4096
DOORBELLS = 256  # bytes taken from the socket at once; what is left rings again
WORD_BYTES = 8

COMMANDS_OFFSET = -(-abi.SHARED_BYTES // PAGE) * PAGE
EVENTS_OFFSET = COMMANDS_OFFSET + COMMANDS_BYTES
STEPS_OFFSET = EVENTS_OFFSET + EVENTS_BYTES
COPIED_BYTES = PAGE  # of a channel's memory, for another like it: the counts of the first rules, too
FAREWELL_TIMEOUT_S = 10.0
WORDS = {name: offset // WORD_BYTES for name, offset in abi.OFFSETS.items()}
COMMANDS_HEAD, COMMANDS_TAIL = WORDS["commands_head"], WORDS["commands_tail"]
HOST_WAITS = WORDS["host_waits"]
EVENTS_HEAD, EVENTS_TAIL = WORDS["events_head"], WORDS["events_tail"]
CLOCK_GUEST_NS, CLOCK_HOST_NS = WORDS["clock_guest_ns"], WORDS["clock_host_ns"]
STEPS_HEAD, STEPS_TAIL = WORDS["steps_head"], WORDS["steps_tail"]


class Channel:
    """A controller's end of a lab's shared memory and socket.

    The first controller makes both (``Channel.make()``) and hands the guest's end of the socket over at boot. Process 1
    of a lab that outlives its controllers keeps both, and gives them to one controller after another.
    """

    def __init__(self, memory_fd: int, host_socket: socket.socket) -> None:
        self.memory_fd = memory_fd
        self.socket = host_socket
        self.socket.setblocking(False)  # noqa: FBT003
        self._memory = mmap.mmap(memory_fd, os.fstat(memory_fd).st_size)
        # One store for each word: struct.pack_into() writes zeros first (CPython, Modules/_struct.c s_pack_into()), and
        # the agent, on another processor, would read them as a head or a tail.
        self._words = memoryview(self._memory).cast("Q")
        self.steps_bytes = len(self._memory) - STEPS_OFFSET
        self._writing = threading.Lock()
        self._leave = os.eventfd(0, os.EFD_CLOEXEC)
        self.kept = False  # by process 1 of the lab, for the next controller
        self.stopped_ns: Callable[[], int] = int  # for how long the guest's clock has stood still

    @classmethod
    def make(cls, steps_bytes: int = STEPS_BYTES) -> tuple["Channel", socket.socket]:
        """Return a new channel, and the guest's end of its socket.

        :param steps_bytes: the size of the ring of steps, a power of two; the first steps allocate its memory
        """
        memory_fd = os.memfd_create("skblab-agent", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(memory_fd, STEPS_OFFSET + steps_bytes)
        # Sealed: we would get a SIGBUS if the guest's kernel truncated it (mmap(2)).
        fcntl.fcntl(memory_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        ours, guests = socket.socketpair()
        channel = cls(memory_fd, ours)
        for name, value in (
            ("memory_bytes", STEPS_OFFSET + steps_bytes),
            ("commands_offset", COMMANDS_OFFSET), ("commands_bytes", COMMANDS_BYTES),
            ("events_offset", EVENTS_OFFSET), ("events_bytes", EVENTS_BYTES),
            ("steps_offset", STEPS_OFFSET), ("steps_bytes", steps_bytes), ("steps_wanted", steps_bytes // 8),
            ("steps_soon_ms", STEPS_SOON_MS),
        ):  # fmt: skip
            channel._write(name, value)
        return channel, guests

    def like(self) -> tuple["Channel", socket.socket]:
        """Return a channel with the agent of a copy of this guest's kernel, and that one's end of the socket.

        Only of an agent that has nothing to say, and was asked nothing that it has not answered.
        """
        channel, guests = Channel.make(self.steps_bytes)
        channel.begin_as(self._memory[:COPIED_BYTES])
        return channel, guests

    def begin_as(self, memory: bytes) -> None:
        """Begin with the memory of another channel, of which everything has been read."""
        self._memory[: len(memory)] = memory
        self._read_all()

    def _read_all(self) -> None:
        """Leave out what the rings have."""
        self._write("events_tail", self._read("events_head"))
        self._write("steps_tail", self._read("steps_head"))

    @classmethod
    def take_over(cls, memory_fd: int, socket_fd: int, farewells: int, clock: Clock = REAL) -> "Channel":
        """Return the channel of a lab when the agent has undone what *farewells* controllers before had asked for.

        :param clock: the guest's; one in virtual time goes on where the last controller has left it

        :raises Timeout: the agent does not answer: the guest is stopped, or has too much to do
        :raises GuestLost: the guest kernel is gone
        """
        channel = cls(memory_fd, socket.socket(fileno=socket_fd))
        channel.kept = True
        try:
            if isinstance(clock, VirtualClock):
                channel.keep_clock(clock)
            channel._wait_for_farewells(farewells, clock)
        except BaseException:
            channel.close()
            raise
        channel._read_all()
        return channel

    def keep_clock(self, clock: VirtualClock) -> None:
        """Keep a clock's state where the next controller finds it."""
        clock.begin_at(self._read("clock_now_ns"), self._read("clock_next_ns"), self._read("clock_rests"))
        clock.changed = self._keep_clock

    def _keep_clock(self, now_ns: int, next_ns: int, rests: int) -> None:
        self._write("clock_now_ns", now_ns)
        self._write("clock_next_ns", next_ns)
        self._write("clock_rests", rests)

    def _wait_for_farewells(self, count: int, clock: Clock) -> None:
        if isinstance(clock, VirtualClock):
            clock.wait_until(lambda: self._read("farewells") >= count, FAREWELL_TIMEOUT_S)
        deadline = time.monotonic() + FAREWELL_TIMEOUT_S
        self._ask_to_be_rung()
        while self._read("farewells") < count:
            if not self._listen(max(deadline - time.monotonic(), 0)):
                raise Timeout(
                    "the agent has not yet undone what the last controller asked for",
                    found="a guest that is stopped under gdb does nothing",
                )
            self._ask_to_be_rung()

    def hang_up(self) -> None:
        """End the conversation: the agent releases and disarms everything, and ``wait()`` raises GuestLost."""
        os.eventfd_write(self._leave, 1)
        if not self.kept:  # else process 1 says farewell for us
            with contextlib.suppress(OSError):
                self.socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Unmap the memory and close the socket; no thread may use the channel afterwards."""
        self.socket.close()
        os.close(self.memory_fd)
        os.close(self._leave)
        words = self._words
        self._words = memoryview(bytearray(words[: max(WORDS.values()) + 1])).cast("Q")  # others may still look
        words.release()
        with self._writing:
            self._memory.close()

    def _read(self, name: str) -> int:
        return self._words[WORDS[name]]

    def _write(self, name: str, value: int) -> None:
        self._words[WORDS[name]] = value

    @property
    def ready(self) -> bool:
        """Whether the agent is loaded."""
        return self._read("magic") == abi.MAGIC

    @property
    def written(self) -> int:
        """How many bytes of events the agent has written since the lab is up."""
        return self._read("events_head")

    @property
    def taken(self) -> int:
        """How many of them ``events()`` has returned, or left out."""
        return self._words[EVENTS_TAIL]

    @property
    def lost(self) -> int:
        """How many events found the ring full."""
        return self._read("lost")

    @property
    def steps_lost(self) -> int:
        """How many records found the ring of steps full, since the lab is up."""
        return self._read("steps_lost")

    @property
    def forgotten(self) -> int:
        """How many packets a trace gave up because it followed too many, since the lab is up."""
        return self._read("forgotten")

    @property
    def unhooked(self) -> int:
        """How many calls did not report their return, being too deep or on too many stacks, since the lab is up."""
        return self._read("unhooked")

    @property
    def held(self) -> int:
        """How many packets are held now."""
        return self._read("held")

    @property
    def link_losses(self) -> tuple[int, int, int]:
        """Frames that the links had lost when the agent last counted: cut, without memory, refused by the host."""
        return self._read("link_cut"), self._read("link_no_memory"), self._read("link_refused")

    @property
    def longest_off_ns(self) -> int:
        """The longest time for which the agent had interrupts off while it released the packets of a rule."""
        return self._read("longest_off_ns")

    def forget_longest_off(self) -> None:
        """Reset ``longest_off_ns``."""
        self._write("longest_off_ns", 0)

    @property
    def probes(self) -> int:
        """How many functions are patched now."""
        return self._read("probes")

    @property
    def stop_address(self) -> int:
        """The address of agent_stop(), which the agent calls for the verdict "stop"."""
        return self._read("stop_address")

    @property
    def by_hand(self) -> tuple[int, int]:
        """The addresses of agent_trampoline(), which gdb calls to hold a packet, and of its struct agent_by_hand."""
        return self._read("trampoline_address"), self._read("by_hand_address")

    @property
    def measured_address(self) -> int:
        """The address of agent_measured(), a function that does nothing, to be probed and called."""
        return self._read("measured_address")

    def host_ns(self, guest_ns: int) -> int:
        """Return the host's CLOCK_MONOTONIC of a moment on the guest's clock."""
        return guest_ns - self._words[CLOCK_GUEST_NS] + self._words[CLOCK_HOST_NS] + self.stopped_ns()

    def counts(self, rule: int) -> abi.Counts:
        """Return what became of a rule's packets."""
        place = abi.OFFSETS["counts"] + rule * abi.COUNTS_LAYOUT.size
        return abi.Counts(*abi.COUNTS_LAYOUT.unpack_from(self._memory, place))

    def send(self, record: bytes) -> None:
        """Put one command into the ring, and ring the agent's doorbell.

        :raises Timeout: the ring is full: the agent does not take its commands, for example in a guest that is stopped
        :raises GuestLost: the guest kernel is gone
        """
        with self._writing:
            if self._memory.closed:
                raise GuestLost("the agent is gone: the lab was closed")
            words, size = self._words, len(record)
            head = words[COMMANDS_HEAD]
            place = head % COMMANDS_BYTES
            left = COMMANDS_BYTES - place
            if head + size + (left if left < size else 0) - words[COMMANDS_TAIL] > COMMANDS_BYTES:
                raise Timeout("the agent does not take its commands", found="the ring of commands is full")
            if left < size:
                abi.RECORD.pack_into(self._memory, COMMANDS_OFFSET + place, left, 0, 0)
                head += left
                place = 0
            place += COMMANDS_OFFSET
            self._memory[place : place + size] = record
            words[COMMANDS_HEAD] = head + size
        try:
            self.socket.send(b"\0")
        except BlockingIOError:  # the socket is full of doorbells
            return
        except OSError:
            raise GuestLost("the agent is gone with the guest kernel") from None

    def queue(self, own: int | None = None) -> Queue:
        """Return where a thread waits for the doorbell, and for *own*, by default what ``hang_up()`` writes to."""
        return Queue(self.socket.fileno(), self._leave if own is None else own)

    def hear(self) -> bool:
        """Silence the doorbell; return False if the other end is closed."""
        try:
            return bool(self.socket.recv(DOORBELLS))
        except BlockingIOError:
            return True
        except ConnectionError:
            return False

    def ask_to_be_rung(self) -> bool:
        """Have the agent ring for what comes from now on; return whether something came before, unrung."""
        self._ask_to_be_rung()
        words = self._words
        return words[EVENTS_HEAD] != words[EVENTS_TAIL] or words[STEPS_HEAD] != words[STEPS_TAIL]

    def _ask_to_be_rung(self) -> None:
        with self._writing:  # a lock is a memory barrier: the agent sees "I wait" before we read its heads
            self._words[HOST_WAITS] = 1

    def _listen(self, timeout_s: float | None) -> bool:
        """Wait for the doorbell; return whether it rang."""
        watched: list[socket.socket | int] = [self.socket, self._leave]
        ready = wait(watched, timeout_s)
        if self._leave in ready or (ready and not self.hear()):
            raise GuestLost("the agent is gone with the guest kernel")
        return bool(ready)

    def events(self) -> list[abi.Hit | abi.Done | abi.End | abi.Task]:
        """Take the events that are there."""
        words = self._words
        found: list[abi.Hit | abi.Done | abi.End | abi.Task] = []
        tail, head = words[EVENTS_TAIL], words[EVENTS_HEAD]
        while tail != head:
            place = EVENTS_OFFSET + tail % EVENTS_BYTES
            size, kind = self._record("events", tail, head, EVENTS_OFFSET, EVENTS_BYTES)
            record = self._memory[place : place + size] if kind else b""
            tail += size
            words[EVENTS_TAIL] = tail
            if kind:
                try:
                    found.append(abi.decode(record))
                except (struct.error, ValueError) as error:
                    raise _damaged("events", str(error)) from None
        return found

    def _record(self, ring: str, tail: int, head: int, offset: int, ring_bytes: int) -> tuple[int, int]:
        """Return size and kind of the record at a ring's tail.

        :raises AgentDamaged: it is no record; the guest's kernel can write to all of this memory
        """
        there = head - tail
        if tail % abi.ALIGNMENT or not abi.RECORD.size <= there <= ring_bytes:
            raise _damaged(ring, f"from {tail} to {head}")
        size, kind, _ = abi.RECORD.unpack_from(self._memory, offset + tail % ring_bytes)
        if size < abi.RECORD.size or size % abi.ALIGNMENT or size > min(there, ring_bytes - tail % ring_bytes):
            raise _damaged(ring, f"a record of {size} bytes at {tail}, up to {head}")
        return size, kind

    def steps(self, take: Callable[[memoryview], object]) -> None:
        """Call *take* with the records of steps, in pieces that may end within a record, and remove them from the ring.

        A record of kind 0 is no step (kernel/agent/agent_abi.h).
        """
        tail, head = self._words[STEPS_TAIL], self._words[STEPS_HEAD]
        whole = True  # the tail is where a record begins
        while tail != head:
            place = STEPS_OFFSET + tail % self.steps_bytes
            if not head - tail <= self.steps_bytes:
                raise _damaged("steps", f"from {tail} to {head}")
            size, kind = self._record("steps", tail, head, STEPS_OFFSET, self.steps_bytes) if whole else (0, 1)
            if kind:
                size = min(head - tail, self.steps_bytes - tail % self.steps_bytes, STEPS_AT_ONCE)
                with memoryview(self._memory)[place : place + size] as piece:
                    take(piece)
            # else the agent went back to the ring's beginning, because we had read everything
            tail += size
            self._write("steps_tail", tail)
            whole = tail == head
            if whole:
                head = self._read("steps_head")


def _damaged(ring: str, found: str) -> AgentDamaged:
    return AgentDamaged(
        "the memory shared with the agent holds what the agent does not write: the guest's kernel has damaged it",
        found=f"in the ring of {ring}: {found}",
        hint="start another lab",
    )
