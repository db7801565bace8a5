"""The messages between skblab and its gdb: frozen records, one JSON object a line.

Both sides load this file, gdb with its own Python, so it imports only the standard library. Times are CLOCK_MONOTONIC
in ns, which both sides share.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, ClassVar

CLOCK, FROZEN = "SKBLAB_CLOCK", "frozen"  # in gdb's environment: the guest's clock stands still while gdb stops it
AGENT_STOP = "agent_stop"  # kernel/agent/verdict.c: gdb's breakpoint for the verdict "stop"


@dataclass(frozen=True)
class Message:
    """One message; its class name is its kind on the wire."""

    kinds: ClassVar[dict[str, type["Message"]]] = {}

    def __init_subclass__(cls) -> None:
        Message.kinds[cls.__name__] = cls


# Requests of skblab.


@dataclass(frozen=True)
class Attach(Message):
    """Attach to the process; answered by Stopped."""

    pid: int


@dataclass(frozen=True)
class Place:
    """A function that takes a packet: its address, and which argument the packet is.

    ``dropped`` is its return value when the packet is dropped at its entry; None if that is not allowed. ``held`` is
    its return value when the packet is held. ``taken_from``, ``taken_to``: the first and last return value by which it
    has taken its packet. ``transmits``: it is a driver's ndo_start_xmit(). ``devices``, ``sockets``, ``nets``: bit n is
    set if argument n is one.
    """

    function: str
    address: int
    argument: int
    dropped: int | None = None
    held: int = 0
    taken_from: int = 0
    taken_to: int = 0
    transmits: bool = False
    devices: int = 0
    sockets: int = 0
    nets: int = 0


@dataclass(frozen=True)
class OpenPrompt(Message):
    """Attach to the process and give the prompt to the user; answered by Done, after which gdb sends only Release.

    ``path``: functions that packets pass. ``ends``: functions that free packets. ``drop``: the function that drops one,
    with the position and value of its drop reason, ``reason_argument`` and ``reason``. ``scripts``: a file of the
    kernel's own gdb commands, or "". ``from_boot``: the process is stopped and will execute the kernel. ``trampoline``
    and ``by_hand``: addresses for holding a packet by the agent (kernel/agent/agent_abi.h struct agent_by_hand);
    ``no_hold``: why it cannot.
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
    """Stop at a function's first instruction if ``condition``, a C expression of its arguments, is true.

    ``skb`` is the C expression of the packet there, or "". Answered by StopSet.
    """

    function: str
    address: int
    skb: str
    condition: str


@dataclass(frozen=True)
class AddSymbols(Message):
    """Load the symbols of a module whose code is at the address ``text``; answered by Done."""

    path: str
    text: int


@dataclass(frozen=True)
class ClearStop(Message):
    """Remove a stop; answered by Done."""

    number: int


@dataclass(frozen=True)
class Go(Message):
    """Resume the kernel: ``how`` is continue, step, next, stepi, finish. Answered by Resumed, then Stopped or Gone."""

    how: str


@dataclass(frozen=True)
class Evaluate(Message):
    """Evaluate a C expression in the stopped frame; answered by Value."""

    expression: str


@dataclass(frozen=True)
class Detach(Message):
    """Detach from the kernel, which runs on; answered by Done, then gdb ends."""


@dataclass(frozen=True)
class Release(Message):
    """Sent by gdb while its user has the prompt: the agent releases a packet, or all (0), once the kernel runs."""

    packet: int


# Answers of gdb.


@dataclass(frozen=True)
class Done(Message):
    """The request was carried out."""


@dataclass(frozen=True)
class Failed(Message):
    """The request failed: gdb's own words."""

    reason: str


@dataclass(frozen=True)
class StopSet(Message):
    """A stop is set; ``number`` names it."""

    number: int


@dataclass(frozen=True)
class Value(Message):
    """An expression's value, as gdb prints it."""

    text: str


@dataclass(frozen=True)
class Resumed(Message):
    """The kernel was resumed at this time."""

    at_ns: int


@dataclass(frozen=True)
class Gone(Message):
    """The kernel's process has ended."""

    status: int | None


@dataclass(frozen=True)
class Argument:
    """One argument of a frame, as gdb prints it; its value may be "<optimized out>"."""

    name: str
    type: str
    value: str


@dataclass(frozen=True)
class GdbFrame:
    """One frame of gdb's backtrace. ``file`` is relative to the kernel's source; "" without debug info."""

    function: str
    file: str
    line: int
    arguments: tuple[Argument, ...]
    inline: bool
    pc: int


@dataclass(frozen=True)
class RawPacket:
    """A packet as read from its ``struct sk_buff *``: kernel field names, kernel values.

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
    """The kernel is stopped. ``reason`` is stop, signal, step or attach; ``number`` the stop's, or 0."""

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

    :raises ValueError: it is not a message
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
