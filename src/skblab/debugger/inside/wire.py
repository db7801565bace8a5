"""The messages between skblab and its gdb: frozen records, one JSON object a line.

Both sides load this file, gdb's in whatever Python that gdb has; the standard library alone. Times are CLOCK_MONOTONIC
nanoseconds, which both sides share.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

AGENT_STOP = "agent_stop"  # kernel/agent/hit.c: where gdb stops for the verdict "stop"


@dataclass(frozen=True)
class Message:
    """One message; its class name is its kind on the wire."""

    kinds: ClassVar[dict[str, type["Message"]]] = {}

    def __init_subclass__(cls) -> None:
        Message.kinds[cls.__name__] = cls


# What skblab asks.


@dataclass(frozen=True)
class Attach(Message):
    """Attach to the process; answered by Stopped."""

    pid: int


@dataclass(frozen=True)
class Place:
    """A function that is entered with a packet: its address, and which argument the packet is.

    ``told`` is what its caller is to be told where the packet is dropped at its entry; None where it may not be.
    ``held`` likewise, where it is held; ``devices``, ``sockets``, ``nets``: bit n, argument n is one.
    """

    function: str
    address: int
    argument: int
    told: int | None
    held: int = 0
    devices: int = 0
    sockets: int = 0
    nets: int = 0


@dataclass(frozen=True)
class OpenPrompt(Message):
    """Attach to the process and give the prompt to the user; answered by Done, after which gdb says Release alone.

    ``path`` is where packets come by, ``ends`` the functions that free them. ``drop`` is the one by which a packet
    is dropped, with ``reason_argument`` and ``reason`` for its drop reason. ``scripts`` is a file of the kernel's
    own commands for gdb, or empty. ``from_boot``: the process is stopped, and about to execute the kernel.
    ``trampoline`` and ``by_hand`` are where the agent holds a packet (kernel/agent/agent_abi.h struct
    agent_by_hand); where it cannot, ``no_hold`` says why.
    """

    pid: int
    from_boot: bool
    scripts: str
    path: tuple[Place, ...]
    ends: tuple[Place, ...]
    drop: Place
    reason_argument: int
    reason: int
    trampoline: int
    by_hand: int
    no_hold: str


@dataclass(frozen=True)
class SetStop(Message):
    """Stop at a function's first instruction, where ``condition``, a C expression of its arguments, holds.

    ``skb`` is the C expression of the packet there, or empty. Answered by StopSet.
    """

    function: str
    address: int
    skb: str
    condition: str


@dataclass(frozen=True)
class AddSymbols(Message):
    """Load the symbols of a module whose code begins at the address ``text``; answered by Done."""

    path: str
    text: int


@dataclass(frozen=True)
class ClearStop(Message):
    """Forget a stop; answered by Done."""

    number: int


@dataclass(frozen=True)
class Go(Message):
    """Let the kernel go: ``how`` is continue, step, next, stepi, finish. Answered by Resumed, later Stopped or Gone."""

    how: str


@dataclass(frozen=True)
class Evaluate(Message):
    """Evaluate a C expression in the stopped frame; answered by Value."""

    expression: str


@dataclass(frozen=True)
class Detach(Message):
    """Let go of the kernel, which runs on; answered by Done, and gdb ends."""


@dataclass(frozen=True)
class Release(Message):
    """Said by gdb while its user has the prompt: the agent is to let a packet go, or all (0), once the kernel runs."""

    packet: int


# What gdb answers.


@dataclass(frozen=True)
class Done(Message):
    """It was done."""


@dataclass(frozen=True)
class Failed(Message):
    """It was not: gdb's own words."""

    reason: str


@dataclass(frozen=True)
class StopSet(Message):
    """A stop stands; ``number`` names it."""

    number: int


@dataclass(frozen=True)
class Value(Message):
    """An expression's value, as gdb prints it."""

    text: str


@dataclass(frozen=True)
class Resumed(Message):
    """The kernel goes on, from this moment."""

    at_ns: int


@dataclass(frozen=True)
class Gone(Message):
    """The kernel's process has ended."""

    status: int | None


@dataclass(frozen=True)
class Argument:
    """One argument of a frame, as gdb prints it; optimised away ones say so."""

    name: str
    type: str
    value: str


@dataclass(frozen=True)
class GdbFrame:
    """One frame of a backtrace. ``file`` is relative to the kernel's source; empty where there is no debug info."""

    function: str
    file: str
    line: int
    arguments: tuple[Argument, ...]
    inline: bool
    pc: int


@dataclass(frozen=True)
class RawPacket:
    """A packet as it was read from its ``struct sk_buff *``: kernel field names, kernel values.

    ``linear`` is hex, from the network header to the end of the linear part. ``skb`` and ``head`` are guest addresses.
    ``protocol`` is in host order.
    """

    skb: int
    head: int
    len: int
    data_len: int
    protocol: int
    mark: int
    hash: int
    dev: str
    linear: str


@dataclass(frozen=True)
class Stopped(Message):
    """The kernel stands still. ``reason`` is stop, signal, step, attach; ``number`` the stop's, or 0."""

    reason: str
    number: int
    detail: str
    at_ns: int
    frames: tuple[GdbFrame, ...]
    packet: RawPacket | None
    packet_problem: str


def encode(message: Message) -> bytes:
    """Return *message* as one line."""
    return json.dumps({"kind": type(message).__name__, **dataclasses.asdict(message)}).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Return the message of one line.

    :raises ValueError: not one of ours
    """
    fields: dict[str, Any] = json.loads(line)
    kind = Message.kinds.get(fields.pop("kind", ""))
    if kind is None:
        raise ValueError(f"unknown message: {line[:200]!r}")
    if kind is OpenPrompt:
        for name in ("path", "ends"):
            fields[name] = tuple(Place(**one) for one in fields[name])
        fields["drop"] = Place(**fields["drop"])
    if kind is Stopped:
        fields["frames"] = tuple(
            GdbFrame(**{**frame, "arguments": tuple(Argument(**one) for one in frame["arguments"])})
            for frame in fields["frames"]
        )
        if fields["packet"]:
            fields["packet"] = RawPacket(**fields["packet"])
    try:
        return kind(**fields)
    except TypeError as error:
        raise ValueError(f"malformed {kind.__name__}: {error}") from None
