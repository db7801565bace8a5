"""Which functions a trace probes, and what each does to its packet (kernel/agent/agent_abi.h enum agent_role)."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from skblab.agent.abi import NO_PACKET, Indirection, Role, TraceProbe
from skblab.agent.functions import REGISTERS, packet_argument, why_not_followed
from skblab.errors import UnknownFunction
from skblab.image.image import Image
from skblab.image.index import Function
from skblab.image.missing import explain_missing
from skblab.image.reasons import CONSUMED, NOT_SPECIFIED, reasons

REASON_TYPE = "enum skb_drop_reason"

# net/core/skbuff.c, except where another file is named. No series has all of them.
BORN = ("__alloc_skb", "build_skb", "napi_build_skb", "slab_build_skb", "__netdev_alloc_skb", "napi_alloc_skb",
        "__napi_alloc_skb")  # fmt: skip
COPIED = ("skb_copy", "__pskb_copy_fclone", "skb_copy_expand", "skb_segment", "skb_segment_list")
MOVED = ("pskb_expand_head",)
# Which parameter is the packet, and which the packet that it becomes a part of.
MERGED = {"skb_gro_receive": ("skb", "p"), "skb_gro_receive_list": ("skb", "p")}  # net/core/gro.c; 0 is success
COALESCED = {"skb_try_coalesce": ("from", "to")}
ENDS = ("skb_release_data",)
BOUNDARIES = ("handle_softirqs", "__do_softirq")  # kernel/softirq.c


@dataclass(frozen=True)
class FunctionProbe:
    """A function that a trace probes, and the command that arms the probe."""

    function: Function
    command: TraceProbe


def choose(image: Image, patterns: Iterable[str] = (), calls: Iterable[str] = ()) -> list[Function]:
    """Return the functions that *patterns* name and that take a packet, and every function that *calls* name.

    A pattern is a shell pattern for a function's name, or, with a slash or ending in ``.c``, for its file. No pattern:
    every function that takes a packet.

    :raises UnknownFunction: a pattern names no function
    """
    everything = image.functions.all()
    chosen: dict[int, Function] = {}
    for pattern, needs_packet in (*((one, True) for one in patterns), *((one, False) for one in calls)):
        found = [one for one in everything if _is_named(one, pattern) and not why_not_followed(one)]
        taken = [one for one in found if not needs_packet or _takes_packet(one)]
        if not taken:
            raise _names_none(image, pattern, found)
        chosen |= {one.address: one for one in taken}
    if not patterns:
        chosen |= {one.address: one for one in everything if _takes_packet(one) and not why_not_followed(one)}
    return list(chosen.values())


def _takes_packet(function: Function) -> bool:
    argument = packet_argument(function)
    return argument is not None and argument.in_register


def _is_named(function: Function, pattern: str) -> bool:
    in_file = "/" in pattern or pattern.endswith(".c")
    return fnmatch.fnmatchcase(function.file if in_file else function.name, pattern)


def _names_none(image: Image, pattern: str, found: list[Function]) -> UnknownFunction:
    if found:
        return UnknownFunction(
            f'no function that "{pattern}" names takes a packet',
            found=found[0].signature,
            hint="--calls PATTERN follows functions without a packet",
        )
    if pattern.isidentifier():
        function = image.functions.lookup(pattern)
        why = why_not_followed(function) if function else ""
        return UnknownFunction(f"{pattern}() cannot be followed: {why}") if why else explain_missing(image, pattern)
    return UnknownFunction(f'no function of Linux {image.release} is named by "{pattern}"', hint="skblab probes lists")


def probes_of(image: Image, functions: Iterable[Function], *, returns: bool = True) -> list[FunctionProbe]:
    """Return the probes of *functions*, and of those that allocate, copy, merge and free packets.

    :param returns: report each return: its time and its value
    """
    numbers = reasons(image.source)
    wanted = {one.address: one for one in functions}
    meaningful = {one.address: one for name in _meaningful() if (one := image.functions.lookup(name))}
    made = []
    for number, function in enumerate((wanted | meaningful).values()):
        role, packet, argument = role_of(function)
        taken = packet_argument(function)
        made.append(
            FunctionProbe(
                function,
                TraceProbe(
                    number,
                    function.address,
                    skb_argument=NO_PACKET if packet is None else packet,
                    argument=argument,
                    role=role,
                    step=function.address in wanted or role is Role.DROPS or role is Role.ENDS,
                    returns=returns and function.address in wanted,
                    no_drop=numbers.get(CONSUMED, 0),
                    no_reason=numbers.get(NOT_SPECIFIED, 0),
                    indirection=taken.indirection if taken and taken.number == packet else Indirection.DIRECT,
                ),
            )
        )
    return made


def _meaningful() -> tuple[str, ...]:
    return (*BORN, *COPIED, *MOVED, *MERGED, *COALESCED, *ENDS, *BOUNDARIES, "kfree_skb_reason", "sk_skb_reason_drop",
            "kfree_skb_list_reason")  # fmt: skip


def role_of(function: Function) -> tuple[Role, int | None, int]:
    """Return what a function does to its packet, which argument the packet is, and which argument the role reads."""
    name = function.name
    taken = packet_argument(function)
    packet = taken.number if taken and taken.in_register else None
    simple = {Role.BORN: BORN, Role.COPIED: COPIED, Role.MOVED: MOVED, Role.ENDS: ENDS, Role.BOUNDARY: BOUNDARIES}
    for role, names in simple.items():
        if name in names:
            return role, None if role in {Role.BORN, Role.BOUNDARY} else packet, 0
    parameters = [parameter.name for parameter in function.parameters[:REGISTERS]]
    types = [parameter.type for parameter in function.parameters[:REGISTERS]]
    for role, others in ((Role.MERGED, MERGED), (Role.COALESCED, COALESCED)):
        if name in others and {*others[name]} <= {*parameters}:
            joining, joined = others[name]
            return role, parameters.index(joining), parameters.index(joined)
    if name.startswith(("kfree_skb", "sk_skb_reason_drop")) and REASON_TYPE in types:
        return Role.DROPS, packet, types.index(REASON_TYPE)
    return Role.PASSED, packet, 0
