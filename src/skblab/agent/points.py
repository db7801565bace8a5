"""Which functions packets are followed through, and what each means for a packet (kernel/agent/agent_abi.h, roles)."""

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

from skblab.agent.abi import NO_PACKET, Given, Point, Role
from skblab.agent.functions import FORBIDDEN_FILES, no_packet
from skblab.errors import UnknownFunction
from skblab.image.image import Image
from skblab.image.index import SKB_TYPE, Function
from skblab.image.missing import explain_missing
from skblab.image.reasons import CONSUMED, NOT_SPECIFIED, reasons

SKB_TYPES = (SKB_TYPE, f"const {SKB_TYPE}")
POINTER_TYPE, LIST_TYPE = "struct sk_buff **", "struct list_head *"
LISTS = frozenset({  # of packets: net/core/dev.c, net/ipv4/ip_input.c, net/ipv6/ip6_input.c
    "netif_receive_skb_list", "netif_receive_skb_list_internal", "__netif_receive_skb_list_core", "ip_list_rcv",
    "ip_sublist_rcv", "ip_list_rcv_finish", "ip_sublist_rcv_finish", "ipv6_list_rcv", "ip6_sublist_rcv",
    "ip6_list_rcv_finish", "ip6_sublist_rcv_finish",
})  # fmt: skip
REASON_TYPE = "enum skb_drop_reason"
DRIVER = "arch/um/drivers/vector_kern.c"  # the guest's network device: the one file of arch/um that packets go through

# net/core/skbuff.c, except where another file is named; of a series that lacks one, another has taken its place.
BORN = ("__alloc_skb", "build_skb", "napi_build_skb", "slab_build_skb", "__netdev_alloc_skb", "napi_alloc_skb",
        "__napi_alloc_skb")  # fmt: skip
COPIED = ("skb_copy", "__pskb_copy_fclone", "skb_copy_expand", "skb_segment", "skb_segment_list")
MOVED = ("pskb_expand_head",)
# Which parameter is the packet, and which the one that it becomes a part of.
MERGED = {"skb_gro_receive": ("skb", "p"), "skb_gro_receive_list": ("skb", "p")}  # net/core/gro.c; 0 is success
COALESCED = {"skb_try_coalesce": ("from", "to")}
ENDS = ("skb_release_data",)
BOUNDARIES = ("handle_softirqs", "__do_softirq")  # kernel/softirq.c


@dataclass(frozen=True, slots=True)
class Passage:
    """A function that is passed, and the point that the agent has there."""

    function: Function
    point: Point


def skb_argument(function: Function) -> int | None:
    """Return which of the arguments in registers is the packet, points to it, or is a list of packets; or None."""
    types = [parameter.type for parameter in function.parameters[:6]]
    kinds = (*SKB_TYPES, POINTER_TYPE, *([LIST_TYPE] if function.name in LISTS else []))
    return next((types.index(kind) for kind in kinds if kind in types), None)


def _given(function: Function, argument: int | None) -> Given:
    kind = function.parameters[argument].type if argument is not None else ""
    return {POINTER_TYPE: Given.BY_POINTER, LIST_TYPE: Given.IN_LIST}.get(kind, Given.ITSELF)


def can_be_followed(function: Function) -> str:
    """Return why packets cannot be followed through a function; "" where they can."""
    if function.file.startswith(FORBIDDEN_FILES) and function.file != DRIVER:
        return "the agent itself runs on it"
    return no_packet(function)


def choose(image: Image, patterns: Iterable[str] = (), calls: Iterable[str] = ()) -> list[Function]:
    """Return the functions that patterns name: those that take a packet, and of *calls* the others too.

    A pattern is a shell pattern for a function's name, or, with a slash or ending in ``.c``, for its file. No pattern:
    every function that takes a packet.

    :raises UnknownFunction: a pattern names none
    """
    everything = image.functions.all()
    chosen: dict[int, Function] = {}
    for pattern, needs_packet in (*((one, True) for one in patterns), *((one, False) for one in calls)):
        found = [one for one in everything if _is_named(one, pattern) and not can_be_followed(one)]
        taken = [one for one in found if not needs_packet or skb_argument(one) is not None]
        if not taken:
            raise _names_none(image, pattern, found)
        chosen |= {one.address: one for one in taken}
    if not patterns:
        chosen |= {one.address: one for one in everything if skb_argument(one) is not None and not can_be_followed(one)}
    return list(chosen.values())


def _is_named(function: Function, pattern: str) -> bool:
    in_file = "/" in pattern or pattern.endswith(".c")
    return fnmatch.fnmatchcase(function.file if in_file else function.name, pattern)


def _names_none(image: Image, pattern: str, found: list[Function]) -> UnknownFunction:
    if found:
        return UnknownFunction(
            f'no function that "{pattern}" names takes a packet',
            found=found[0].signature,
            hint="--calls PATTERN follows what is called in a packet's course, packet or not",
        )
    if pattern.isidentifier():
        function = image.functions.lookup(pattern)
        why = can_be_followed(function) if function else ""
        return UnknownFunction(f"{pattern}() cannot be followed: {why}") if why else explain_missing(image, pattern)
    return UnknownFunction(f'no function of Linux {image.release} is named by "{pattern}"', hint="skblab probes lists")


def passages(image: Image, functions: Iterable[Function], *, returns: bool = True) -> list[Passage]:
    """Return the passages of functions, and of those by which packets begin, become others and end.

    :param returns: tell of each return: its time and its value
    """
    numbers = reasons(image.source)
    wanted = {one.address: one for one in functions}
    meaningful = {one.address: one for name in _meaningful() if (one := image.functions.lookup(name))}
    made = []
    for number, function in enumerate((wanted | meaningful).values()):
        role, packet, argument = role_of(function)
        made.append(
            Passage(
                function,
                Point(
                    number,
                    function.address,
                    skb_argument=NO_PACKET if packet is None else packet,
                    argument=argument,
                    role=role,
                    step=function.address in wanted or role is Role.DROPS or role is Role.ENDS,
                    returns=returns and function.address in wanted,
                    no_drop=numbers.get(CONSUMED, 0),
                    no_reason=numbers.get(NOT_SPECIFIED, 0),
                    given=_given(function, packet),
                ),
            )
        )
    return made


def _meaningful() -> tuple[str, ...]:
    return (*BORN, *COPIED, *MOVED, *MERGED, *COALESCED, *ENDS, *BOUNDARIES, "kfree_skb_reason", "sk_skb_reason_drop",
            "kfree_skb_list_reason")  # fmt: skip


def role_of(function: Function) -> tuple[Role, int | None, int]:
    """Return what a function means for its packet, which argument that is, and which one tells more."""
    name = function.name
    packet = skb_argument(function)
    simple = {Role.BORN: BORN, Role.COPIED: COPIED, Role.MOVED: MOVED, Role.ENDS: ENDS, Role.BOUNDARY: BOUNDARIES}
    for role, names in simple.items():
        if name in names:
            return role, None if role in {Role.BORN, Role.BOUNDARY} else packet, 0
    parameters = [parameter.name for parameter in function.parameters[:6]]
    types = [parameter.type for parameter in function.parameters[:6]]
    for role, others in ((Role.MERGED, MERGED), (Role.COALESCED, COALESCED)):
        if name in others and {*others[name]} <= {*parameters}:
            joining, joined = others[name]
            return role, parameters.index(joining), parameters.index(joined)
    if name.startswith(("kfree_skb", "sk_skb_reason_drop")) and REASON_TYPE in types:
        return Role.DROPS, packet, types.index(REASON_TYPE)
    return Role.PASSED, packet, 0
