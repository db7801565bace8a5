"""kernel/agent/agent_abi.h in Python. tests/unit/test_abi.py compiles that header and compares, member by member."""

import enum
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

MAGIC = 0x736B626C61623036
RULES = 8192
BY_HAND = RULES - 1
TRACE_PROBES = 32768
FIELDS, FIELD_HOPS, FIELD_BYTES = 8, 6, 64
SEEN_BYTES = 128
NOTE_BYTES = 64
LONG, LONG_NS = 1 << 31, 1024
LEAST_INT, MOST_INT = -(1 << 31), (1 << 31) - 1
NO_PACKET = 0xFF
FAREWELL = 1
QUIET = 1  # number of RELEASE, DISCARD: nobody waits to hear of the packet's end
ALL = 0  # End.packet: every packet that the rule held
RECORD = struct.Struct("=IHH")
ALIGNMENT = 8
STACK_SHIFT, STACK_ADDRESS = 48, (1 << 48) - 1

# Offsets in struct agent_shared.
OFFSETS = {
    "magic": 0, "memory_bytes": 8, "commands_offset": 16, "commands_bytes": 24, "events_offset": 32, "events_bytes": 40,
    "clock_guest_ns": 48, "clock_host_ns": 56, "stop_address": 64, "measured_address": 72,
    "steps_offset": 80, "steps_bytes": 88, "trampoline_address": 96, "by_hand_address": 104,
    "commands_head": 128, "commands_tail": 192,
    "events_head": 256, "lost": 264, "held": 272, "probes": 280, "farewells": 288,
    "events_tail": 320, "host_waits": 328, "clock_now_ns": 336, "clock_next_ns": 344, "clock_rests": 352,
    "steps_head": 384, "steps_lost": 392, "forgotten": 400, "unhooked": 408,
    "steps_tail": 448, "steps_wanted": 456, "steps_soon_ms": 464, "longest_off_ns": 472,
    "link_cut": 480, "link_no_memory": 488, "link_refused": 496, "counts": 512,
}  # fmt: skip
SHARED_BYTES = 1114624


class Command(enum.IntEnum):
    """enum agent_command_kind."""

    ARM = 1
    DISARM = 2
    RELEASE = 3
    DISCARD = 4
    COPY = 5
    WRITE = 6
    MEASURE = 7
    FOLLOW = 8
    TRACE_PROBE = 9
    UNFOLLOW = 10
    LOSSES = 11
    LATER = 12
    TASKS = 13


class Role(enum.IntEnum):
    """enum agent_role: what a function does to a packet in a trace."""

    PASSED = 0
    BORN = 1
    COPIED = 2
    MOVED = 3
    MERGED = 4
    COALESCED = 5
    DROPS = 6
    ENDS = 7
    BOUNDARY = 8


class WriteFlag(enum.IntFlag):
    """enum agent_write_flags."""

    WITHIN_MTU = 1
    DISTRUST = 2


class Event(enum.IntEnum):
    """enum agent_event_kind."""

    HIT = 1
    DONE = 2
    RELEASED = 3
    DROPPED = 4
    TASK = 5


class Cause(enum.IntEnum):
    """enum agent_cause: why a held packet was released or dropped."""

    DECIDED = 0
    LEASE = 1
    DEVICE_GOES = 2
    NAMESPACE_GOES = 3

    def __str__(self) -> str:
        return CAUSES[self]


CAUSES = {
    Cause.DECIDED: "",
    Cause.LEASE: "nobody decided within its lease",
    Cause.DEVICE_GOES: "a device that it needs went away",
    Cause.NAMESPACE_GOES: "its network namespace went away",
}


class Indirection(enum.IntEnum):
    """enum agent_indirection: how a function gets its packet."""

    DIRECT = 0
    BY_POINTER = 1
    IN_LIST = 2


COUNTS_LAYOUT = struct.Struct("=17Q")


@dataclass(frozen=True)
class Counts:
    """struct agent_counts: what became of the packets that one rule's filter took.

    ``verdicts`` counts the packets that got the rule's verdict; ``waited`` those at its function, whether the filter
    takes them or not, that went on behind one that was being changed; ``surrounded`` the calls that the rule was
    inside. ``handed_back`` counts packets that the function did not take when they went on, because its device was
    down, for one: they were freed. No rule asks for those, for what is counted from ``no_memory`` to ``given_up``, and
    for ``not_surrounded``: ``caveats`` has a sentence for each.
    """

    arrived: int
    passed: int
    traced: int
    held: int
    released: int
    dropped: int
    duplicated: int
    stopped: int
    no_memory: int = 0
    going: int = 0
    unreported: int = 0
    too_many: int = 0
    expired: int = 0
    given_up: int = 0
    verdicts: int = 0
    waited: int = 0
    handed_back: int = 0
    surrounded: int = 0
    not_surrounded: int = 0

    @property
    def caveats(self) -> list[str]:
        """A sentence for each thing that happened to packets and that the rule did not ask for."""
        sentences = (
            (self.no_memory, "not held or not copied: the guest's memory is short, give it more with --memory"),
            (self.going, "not held: their route, socket, device or namespace was going away"),
            (self.unreported, "not held: the ring of events was full"),
            (self.too_many, "not copied: they are copies, and theirs would be too many"),
            (self.expired, "went on by themselves: nobody decided on them within their lease"),
            (self.given_up, "held, then dropped: their device or network namespace went away"),
            (self.handed_back, "freed: the function did not take them when they went on"),
            (self.not_surrounded, "calls not looked into: too many were running, or too many rules are inside"),
        )
        return [f"{count} {what}" for count, what in sentences if count]


FIELD_LAYOUT = struct.Struct(f"={FIELD_HOPS}HBB2x")


class Field(NamedTuple):
    """struct agent_field: a value behind pointers, from the struct sk_buff on."""

    offsets: tuple[int, ...]
    size_bytes: int

    def encode(self) -> bytes:
        """Return its bytes."""
        padded = (*self.offsets, *[0] * FIELD_HOPS)[:FIELD_HOPS]
        return FIELD_LAYOUT.pack(*padded, len(self.offsets), self.size_bytes)


CONDITION_REST = struct.Struct("=Q4B4x32s")
CONDITION_LAYOUT = struct.Struct(FIELD_LAYOUT.format + CONDITION_REST.format.removeprefix("="))
CONDITIONS = 16  # of a filter, at most


class Operation(enum.IntEnum):
    """enum agent_operation: how a condition compares a field with its value."""

    EQUAL = 0
    UNEQUAL = 1
    LESS = 2
    AT_MOST = 3
    GREATER = 4
    AT_LEAST = 5
    ANY_BIT = 6


class ConditionFlag(enum.IntFlag):
    """enum agent_condition_flags: what a condition's field is."""

    SIGNED = 1
    BIG_ENDIAN = 2
    TEXT = 4


class Condition(NamedTuple):
    """struct agent_condition: what a packet's field must be."""

    field: Field
    operation: Operation
    value: int = 0
    shift: int = 0
    bits: int = 0
    flags: ConditionFlag = ConditionFlag(0)
    text: bytes = b""

    def encode(self) -> bytes:
        """Return its bytes."""
        value = self.value % (1 << 64)
        rest = CONDITION_REST.pack(value, self.operation, self.shift, self.bits, self.flags, self.text)
        return self.field.encode() + rest


ARM_LAYOUT = struct.Struct("=IHH10Qq5I4i4B3H5B5x")


class Arm(NamedTuple):
    """struct agent_arm: put a rule on a function. ``verdict`` is a row's number (skblab.verdict)."""

    address: int
    verdict: int
    filter: bytes = b""
    first: int = 1
    last: int = 0
    every: int = 0
    delay_ns: int = 0
    jitter_ns: int = 0
    lease_ns: int = 0
    text_start: int = 0
    text_end: int = 0
    argument: int = 0
    chance: int = 0
    seed: int = 0
    reason: int = 0
    captured_bytes: int = 0
    held_returns: int = 0
    dropped_returns: int = 0
    taken_from: int = LEAST_INT
    taken_to: int = MOST_INT
    skb_argument: int = 0
    device_arguments: int = 0
    socket_arguments: int = 0
    net_arguments: int = 0
    transmits: int = 0
    at_once: int = 0
    in_order: int = 0
    frees: int = 0
    inside: int = 0
    surrounds: int = 0
    conditions: tuple[Condition, ...] = ()

    def encode(self, rule: int, cookie: int) -> bytes:
        """Return the command's bytes."""
        conditions = b"".join(one.encode() for one in self.conditions)
        head = ARM_LAYOUT.pack(
            ARM_LAYOUT.size + len(self.filter) + len(conditions), Command.ARM, rule, cookie, self.address,
            self.first, self.last, self.every, self.delay_ns, self.jitter_ns, self.lease_ns,
            self.text_start, self.text_end, self.argument,
            self.chance, self.seed, self.verdict, self.reason, self.captured_bytes,
            self.held_returns, self.dropped_returns, self.taken_from, self.taken_to,
            self.skb_argument, self.device_arguments, self.socket_arguments, self.net_arguments,
            len(self.filter) // 8, len(self.conditions), self.inside, self.surrounds, self.transmits, self.at_once,
            self.in_order, self.frees,
        )  # fmt: skip
        return head + self.filter + conditions


class ByHand(NamedTuple):
    """struct agent_by_hand: what a debugger writes to have the agent hold a packet, and reads when it has tried."""

    address: int
    packet: int
    held_returns: int
    taken_from: int
    taken_to: int
    skb_argument: int
    device_arguments: int
    socket_arguments: int
    net_arguments: int
    transmits: int


BY_HAND_LAYOUT = struct.Struct("=QQ3i5B7x")
DECIDE = struct.Struct("=IHHQQQiI")
WRITE = struct.Struct("=IHHQQiIHHI")


def encode_decide(
    kind: Command, cookie: int, *, rule: int = 0, packet: int = 0, after_ns: int = 0, number: int = 0, data: bytes = b""
) -> bytes:
    """Return the bytes of a command about one held packet, or about a rule (DISARM)."""
    if not data:
        return DECIDE.pack(DECIDE.size, kind, rule, cookie, packet, after_ns, number, 0)
    return _with_data(DECIDE, data, kind, rule, cookie, packet, after_ns, number, len(data))


def encode_write(
    cookie: int, *, packet: int, data: bytes, data_offset: int, checksum: tuple[int, int], flags: int
) -> bytes:
    """Return the bytes of a command that writes a packet's bytes, from its network header on."""
    return _with_data(WRITE, data, Command.WRITE, 0, cookie, packet, data_offset, len(data), *checksum, flags)


class BranchKind(enum.IntEnum):
    """enum agent_branch_kind."""

    BRANCH_COPY = 0
    BRANCH_REPLACE = 1
    BRANCH_MAP = 2
    BRANCH_PAIR = 3
    BRANCH_EPOLL = 4
    BRANCH_WATCH = 5


BRANCH_BYTES = 64 << 10
BRANCH_LAYOUT = struct.Struct("=6Q2IQ")
BRANCH_STEP_LAYOUT = struct.Struct("=IIiiQQQ")


class BranchStep(NamedTuple):
    """struct agent_branch_step."""

    kind: BranchKind
    flags: int = 0
    fd: int = 0
    other: int = 0
    address: int = 0
    bytes: int = 0
    offset: int = 0


def encode_branch(addresses: Sequence[int], programs: int, fds: int, steps: Sequence[BranchStep]) -> bytes:
    """Return struct agent_branch: the addresses that it names, what is there, and what is done."""
    head = BRANCH_LAYOUT.pack(*addresses, programs, fds, len(steps))
    return head + b"".join(BRANCH_STEP_LAYOUT.pack(*step) for step in steps)


def _with_data(layout: struct.Struct, data: bytes, *fields: int) -> bytes:
    """Return the bytes of a record that ends in data, padded to a whole number of ALIGNMENT."""
    size = -(-(layout.size + len(data)) // ALIGNMENT) * ALIGNMENT
    return (layout.pack(size, *fields) + data).ljust(size, b"\0")


FOLLOW_LAYOUT = struct.Struct("=IHHQQQI2H")


class Follow(NamedTuple):
    """struct agent_follow: which packets a trace follows, and which fields it reports at each step."""

    filter: bytes = b""
    fields: tuple[Field, ...] = ()
    text_start: int = 0
    text_end: int = 0
    conditions: tuple[Condition, ...] = ()

    def encode(self, cookie: int) -> bytes:
        """Return the command's bytes."""
        fields = b"".join(field.encode() for field in self.fields).ljust(FIELDS * FIELD_LAYOUT.size, b"\0")
        conditions = b"".join(one.encode() for one in self.conditions)
        head = FOLLOW_LAYOUT.pack(
            FOLLOW_LAYOUT.size + len(fields) + len(self.filter) + len(conditions), Command.FOLLOW, 0, cookie,
            self.text_start, self.text_end, len(self.fields), len(self.filter) // 8, len(self.conditions),
        )  # fmt: skip
        return head + fields + self.filter + conditions


PROBE_LAYOUT = struct.Struct("=IHHQQ8B")


class TraceProbe(NamedTuple):
    """struct agent_trace_probe: a probe of a trace."""

    number: int
    address: int
    skb_argument: int = NO_PACKET
    argument: int = 0
    role: Role = Role.PASSED
    step: bool = True
    returns: bool = True
    no_drop: int = 0
    no_reason: int = 0
    indirection: Indirection = Indirection.DIRECT

    def encode(self, cookie: int) -> bytes:
        """Return the command's bytes."""
        return PROBE_LAYOUT.pack(
            PROBE_LAYOUT.size, Command.TRACE_PROBE, self.number, cookie, self.address,
            self.skb_argument, self.argument, self.role, self.step, self.returns, self.no_drop, self.no_reason,
            self.indirection,
        )  # fmt: skip


HIT_HEAD, HIT_REST = struct.Struct("=IHH4Q"), struct.Struct("=2QIIiIIIIHHHHI")
HIT_LAYOUT = struct.Struct(HIT_HEAD.format + HIT_REST.format.removeprefix("="))


class Hit:
    """struct agent_hit: a packet met a rule. ``at_ns`` is the guest's clock; ``data`` begins at the network header.

    Without a packet ``session`` is the number of the current task's session (setsid(2)).

    Of a packet in a trace ``followed`` is its number, and ``call`` that of its step; else 0. What a decision can do
    without is read from the record when it is first asked for.
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
    followed: int
    call: int
    protocol: int
    checksum_start: int
    checksum_offset: int
    session: int
    data: bytes
    stack_words: bytes

    def __init__(self, record: bytes) -> None:
        self._record = record
        _, _, self.rule, self.at_ns, self.packet, self.occurrence, self.skb = HIT_HEAD.unpack_from(record)

    if not TYPE_CHECKING:  # else every name would be one of its

        def __getattr__(self, name: str) -> object:
            if name not in Hit.__annotations__:
                raise AttributeError(name)
            self._read()
            return self.__dict__[name]

    def _read(self) -> None:
        (
            self.head, self.address, self.verdict, self.length, self.data_offset, self.mark, self.device,
            self.followed, self.call, self.protocol, captured_bytes, self.checksum_start, self.checksum_offset,
            self.session,
        ) = HIT_REST.unpack_from(self._record, HIT_HEAD.size)  # fmt: skip
        end = HIT_LAYOUT.size + captured_bytes
        self.data = self._record[HIT_LAYOUT.size : end]
        self.stack_words = self._record[-(-end // ALIGNMENT) * ALIGNMENT :]

    @property
    def stack(self) -> tuple[tuple[int, int], ...]:
        """Each word on the stack that can be a return address; empty where the verdict needs no stack.

        (offset in bytes from the probed function's return address, word), innermost first.
        """
        words = struct.iter_unpack("=Q", self.stack_words)
        return tuple((word >> STACK_SHIFT, word & STACK_ADDRESS) for (word,) in words)


DONE_LAYOUT = struct.Struct(f"=IHHQq{NOTE_BYTES}s")


class Done(NamedTuple):
    """struct agent_done: the answer to a command; a refusal may have a note."""

    cookie: int
    result: int
    note: str = ""


END_LAYOUT = struct.Struct("=IHHQQI4x")


class End(NamedTuple):
    """struct agent_end: a packet is held no more, or (``ALL``) no packet of its rule."""

    rule: int
    at_ns: int
    packet: int
    dropped: bool
    cause: Cause = Cause.DECIDED


TASK_LAYOUT = struct.Struct("=IHHii16s2B6x")


class Task(NamedTuple):
    """struct agent_task: a task of a program of the guest's; ``call`` is the number of its system call, or -1."""

    pid: int
    call: int
    name: str
    runs: bool
    is_kernels: bool


def decode(record: bytes) -> Hit | Done | End | Task:
    """Return the event of one record.

    :raises ValueError: not one
    """
    _, kind, rule = RECORD.unpack_from(record)
    if kind == Event.HIT:
        if len(record) < HIT_LAYOUT.size:
            raise ValueError(f"a hit of {len(record)} bytes")
        return Hit(record)
    if kind == Event.DONE:
        cookie, result, note = DONE_LAYOUT.unpack_from(record)[3:]
        return Done(cookie, result, note.rstrip(b"\0").decode(errors="replace"))
    if kind in {Event.RELEASED, Event.DROPPED}:
        at_ns, packet, cause = END_LAYOUT.unpack_from(record)[3:]
        return End(rule, at_ns, packet, kind == Event.DROPPED, Cause(cause))
    if kind == Event.TASK:
        pid, call, name, runs, is_kernels = TASK_LAYOUT.unpack_from(record)[3:]
        return Task(pid, call, name.partition(b"\0")[0].decode(errors="replace"), bool(runs), bool(is_kernels))
    raise ValueError(f"unknown event of kind {kind}")


class StepKind(enum.IntEnum):
    """enum agent_step_kind."""

    STEP = 1
    RETURNED = 2
    KIN = 3
    DEVICE = 4


class StepFlag(enum.IntFlag):
    """enum agent_step_flags."""

    FREED = 1
    CHANGED = 2
    RESUMED = 4
    SHARED_HEAD = 8
    MORE = 16
    LET_GO = 32


def took_ns(took: int) -> int:
    """Return agent_return.took in ns."""
    return took if took < LONG else (took - LONG) * LONG_NS


class StepRecord(NamedTuple):
    """struct agent_step. Of this and the other records of steps, ``rule`` is the probe's number."""

    record_bytes: int
    kind: int
    rule: int
    at_ns: int
    packet: int
    call: int
    outer: int
    length: int
    skb: int
    caller: int
    data_offset: int
    protocol: int
    device: int
    captured_bytes: int
    flags: int


class MoreRecord(NamedTuple):
    """struct agent_more."""

    mark: int
    hash: int
    reason: int


class ReturnRecord(NamedTuple):
    """struct agent_return."""

    record_bytes: int
    kind: int
    rule: int
    value: int
    call: int
    took: int


class KinRecord(NamedTuple):
    """struct agent_kin."""

    record_bytes: int
    kind: int
    rule: int
    at_ns: int
    skb: int
    packet: int
    other: int
    call: int
    role: int


class DeviceRecord(NamedTuple):
    """struct agent_device."""

    record_bytes: int
    kind: int
    rule: int
    device: int
    name: bytes


# What packs and unpacks them.
STEP = struct.Struct("=IHHQ4IQQhHHBB")
MORE = struct.Struct("=III4x")
RETURN = struct.Struct("=IHHQII")
KIN = struct.Struct("=IHHQQ4I")
DEVICE = struct.Struct("=IHHI4x16s")
