"""The contract with the agent: kernel/agent/agent_abi.h in Python. A test compiles that header and compares."""

import enum
import struct
from dataclasses import dataclass
from typing import ClassVar

MAGIC = 0x736B626C61623031
RULES = 8192
NO_PACKET = 0xFF
FAREWELL = 1
RECORD = struct.Struct("=IHH")
ALIGNMENT = 8
STACK_SHIFT, STACK_ADDRESS = 48, (1 << 48) - 1

# Offsets in struct agent_shared.
OFFSETS = {
    "magic": 0, "memory_bytes": 8, "commands_offset": 16, "commands_bytes": 24, "events_offset": 32, "events_bytes": 40,
    "clock_guest_ns": 48, "clock_host_ns": 56, "stop_address": 64, "measured_address": 72,
    "commands_head": 128, "commands_tail": 192,
    "events_head": 256, "lost": 264, "held": 272, "probes": 280, "farewells": 288,
    "events_tail": 320, "host_waits": 328, "counts": 384,
}  # fmt: skip
SHARED_BYTES = 524672


class Verdict(enum.IntEnum):
    """What the agent does with a packet; what a person may ask for is more (see rule.py)."""

    ACCEPT = 0
    TRACE = 1
    HOLD = 2
    DROP = 3
    DUPLICATE = 4
    STOP = 5


class Command(enum.IntEnum):
    """What the agent can be told."""

    ARM = 1
    DISARM = 2
    RELEASE = 3
    DISCARD = 4
    COPY = 5
    WRITE = 6
    MEASURE = 7


class Event(enum.IntEnum):
    """What the agent tells."""

    HIT = 1
    DONE = 2
    RELEASED = 3
    DROPPED = 4


@dataclass(frozen=True, slots=True)
class Counts:
    """What became of the packets that one rule's filter took."""

    arrived: int
    accepted: int
    traced: int
    held: int
    released: int
    dropped: int
    duplicated: int
    stopped: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=8Q")


@dataclass(frozen=True, slots=True)
class Arm:
    """struct agent_arm: put a rule on a function."""

    rule: int
    address: int
    verdict: Verdict
    filter: bytes = b""
    first: int = 1
    last: int = 0
    every: int = 0
    delay_ns: int = 0
    jitter_ns: int = 0
    text_start: int = 0
    text_end: int = 0
    chance: int = 0
    seed: int = 0
    reason: int = 0
    copies: int = 0
    captured_bytes: int = 0
    held_returns: int = 0
    dropped_returns: int = 0
    skb_argument: int = 0
    device_arguments: int = 0
    socket_arguments: int = 0

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IHH9Q6I2i3BxI")

    def encode(self, cookie: int) -> bytes:
        """Return the command's bytes."""
        head = self.LAYOUT.pack(
            self.LAYOUT.size + len(self.filter), Command.ARM, self.rule, cookie, self.address,
            self.first, self.last, self.every, self.delay_ns, self.jitter_ns, self.text_start, self.text_end,
            self.chance, self.seed, self.verdict, self.reason, self.copies, self.captured_bytes,
            self.held_returns, self.dropped_returns,
            self.skb_argument, self.device_arguments, self.socket_arguments, len(self.filter) // 8,
        )  # fmt: skip
        return head + self.filter


DECIDE = struct.Struct("=IHHQQQiI")


def encode_decide(
    kind: Command, cookie: int, *, rule: int = 0, packet: int = 0, after_ns: int = 0, number: int = 0, data: bytes = b""
) -> bytes:
    """Return the bytes of a command about one held packet, or about a rule (DISARM)."""
    size = -(-(DECIDE.size + len(data)) // ALIGNMENT) * ALIGNMENT
    return (DECIDE.pack(size, kind, rule, cookie, packet, after_ns, number, len(data)) + data).ljust(size, b"\0")


@dataclass(frozen=True, slots=True)
class Hit:
    """struct agent_hit: a packet met a rule. ``at_ns`` is the guest's clock; ``data`` begins at the network header.

    ``stack``: (bytes from the probed function's return address, word) of every word of the stack from there on that can
    be a return address; empty where it was not asked for.
    """

    rule: int
    at_ns: int
    packet: int
    occurrence: int
    skb: int
    head: int
    address: int
    verdict: int
    length: int
    data_offset: int
    mark: int
    device: int
    protocol: int
    data: bytes
    stack: tuple[tuple[int, int], ...] = ()

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IHH6QIIiIIHH")


@dataclass(frozen=True, slots=True)
class Done:
    """struct agent_done: the answer to a command."""

    cookie: int
    result: int

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IHHQq")


@dataclass(frozen=True, slots=True)
class End:
    """struct agent_end: a packet that was held is so no more."""

    rule: int
    at_ns: int
    packet: int
    dropped: bool

    LAYOUT: ClassVar[struct.Struct] = struct.Struct("=IHHQQ")


def decode(record: bytes) -> Hit | Done | End:
    """Return the event of one record.

    :raises ValueError: not one
    """
    _, kind, rule = RECORD.unpack_from(record)
    if kind == Event.HIT:
        fields = Hit.LAYOUT.unpack_from(record)
        end = Hit.LAYOUT.size + fields[-1]
        words = struct.iter_unpack("=Q", record[-(-end // ALIGNMENT) * ALIGNMENT :])
        stack = tuple((word >> STACK_SHIFT, word & STACK_ADDRESS) for (word,) in words)
        return Hit(*(rule, *fields[3:-1], record[Hit.LAYOUT.size : end], stack))
    if kind == Event.DONE:
        return Done(*Done.LAYOUT.unpack_from(record)[3:])
    if kind in {Event.RELEASED, Event.DROPPED}:
        at_ns, packet = End.LAYOUT.unpack_from(record)[3:]
        return End(rule, at_ns, packet, kind == Event.DROPPED)
    raise ValueError(f"unknown event of kind {kind}")
