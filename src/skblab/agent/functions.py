"""Which argument of a kernel function is its packet, may the agent look at it, and which verdicts are sound there.

Rules, traces, ``skblab probes`` and gdb all ask here. A packet that its function does not own (``contracts``) can be
traced only.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from skblab.agent.abi import Indirection
from skblab.agent.contracts import CONTRACTS, Contract, contract_of
from skblab.errors import UnsupportedVerdict
from skblab.image.image import Image
from skblab.image.index import SKB_TYPE, Function
from skblab.image.members import members_of
from skblab.verdict import RETURN, ROWS, Verdict, number_of

REGISTERS = 6  # System V ABI, AMD64: arguments beyond the sixth are on the stack
DEVICE_TYPE, SOCKET_TYPE, NET_TYPE = "struct net_device *", "struct sock *", "struct net *"
CONST_TYPE, POINTER_TYPE, LIST_TYPE = f"const {SKB_TYPE}", "struct sk_buff **", "struct list_head *"
LISTS = frozenset({  # whose list is one of packets: net/core/dev.c, net/ipv4/ip_input.c, net/ipv6/ip6_input.c
    "netif_receive_skb_list", "netif_receive_skb_list_internal", "__netif_receive_skb_list_core", "ip_list_rcv",
    "ip_sublist_rcv", "ip_list_rcv_finish", "ip_sublist_rcv_finish", "ipv6_list_rcv", "ip6_sublist_rcv",
    "ip6_list_rcv_finish", "ip6_sublist_rcv_finish",
})  # fmt: skip

# Files whose functions the agent itself calls, or that run on another stack than the kernel's: no probe there.
FORBIDDEN_FILES = ("arch/um/", "arch/x86/um/", "kernel/time/", "kernel/softirq.c", "kernel/bpf/", "lib/")
DRIVER = "arch/um/drivers/vector_kern.c"  # the guest's network device: a trace sees it, a rule may not be there

# net/core/skbuff.c, net/core/datagram.c, net/unix/af_unix.c: functions whose sk_buff is no valid packet at their entry.
NO_PACKETS = {
    **dict.fromkeys(
        ("__build_skb_around", "build_skb_around", "__finalize_skb_around", "__skb_clone", "__copy_skb_header"),
        "its packet is not whole yet",
    ),
    **dict.fromkeys(
        ("kfree_skbmem", "skb_free_head", "skb_kfree_head", "napi_skb_cache_put"), "its packet has been freed already"
    ),
    **dict.fromkeys(
        (
            "__skb_try_recv_from_queue",
            "__skb_try_recv_datagram",
            "__skb_wait_for_more_packets",
            "unix_stream_data_wait",
        ),
        "its argument is a place in a queue, not a packet",
    ),
}

MOST_ERRNO = 4095  # include/linux/err.h MAX_ERRNO
BOOLEANS = ("bool", "_Bool")
BITS = {  # of a number by its C type; what has another name may have 64
    **dict.fromkeys(("char", "signed char", "unsigned char", "u8", "s8", "__u8", "__s8"), 8),
    **dict.fromkeys(("short", "unsigned short", "u16", "s16", "__u16", "__s16", "__be16", "__le16", "__sum16"), 16),
    **dict.fromkeys(("int", "unsigned int", "u32", "s32", "__u32", "__s32", "__be32", "__le32", "__wsum"), 32),
    "umode_t": 16,
}


@dataclass(frozen=True)
class PacketArgument:
    """The argument by which a function gets its packet.

    :param number: from 0
    :param type: its C type
    :param indirection: the packet itself, a pointer to it, or a list of packets
    """

    number: int
    type: str
    indirection: Indirection

    @property
    def in_register(self) -> bool:
        """Whether the agent finds it: it is not on the stack."""
        return self.number < REGISTERS

    @property
    def is_plain(self) -> bool:
        """Whether it is a ``struct sk_buff *``, which rules and gdb take."""
        return self.type == SKB_TYPE


@dataclass(frozen=True)
class References:
    """Arguments that a held packet needs to stay valid: bit n is argument n (kernel/agent/keep.c takes references)."""

    devices: int
    sockets: int
    nets: int


def packet_argument(function: Function) -> PacketArgument | None:
    """Return the argument by which a function gets its packet, or None where it gets none."""
    types = [parameter.type for parameter in function.parameters]
    kinds = {SKB_TYPE: Indirection.DIRECT, CONST_TYPE: Indirection.DIRECT, POINTER_TYPE: Indirection.BY_POINTER}
    if function.name in LISTS:
        kinds[LIST_TYPE] = Indirection.IN_LIST
    for kind, indirection in kinds.items():
        if kind in types[:REGISTERS]:
            return PacketArgument(types.index(kind), kind, indirection)
    return PacketArgument(types.index(SKB_TYPE), SKB_TYPE, Indirection.DIRECT) if SKB_TYPE in types else None


def plain_packet(function: Function) -> PacketArgument | None:
    """Return the argument that is a function's ``struct sk_buff *``, or None where it has none."""
    argument = packet_argument(function)
    return argument if argument and argument.is_plain else None


def references(function: Function) -> References:
    """Return which arguments a held packet needs to stay valid."""
    types = [parameter.type for parameter in function.parameters[:REGISTERS]]
    return References(*(_bits(types, wanted) for wanted in (DEVICE_TYPE, SOCKET_TYPE, NET_TYPE)))


def _bits(types: list[str], wanted: str) -> int:
    return sum(1 << number for number, one in enumerate(types) if one == wanted)


def why_no_packet(function: Function) -> str:
    """Return why the agent may not look at a function's packet; "" where it may."""
    return NO_PACKETS.get(function.name.partition(".")[0], "")


def why_not_followed(function: Function) -> str:
    """Return why a trace cannot probe a function; "" where it can."""
    if _is_forbidden(function) and function.file != DRIVER:
        return "the agent itself runs on it"
    return why_no_packet(function)


def readable_packet(function: Function) -> PacketArgument | None:
    """Return the argument whose packet the agent can look at, or None if there is no such argument."""
    argument = plain_packet(function)
    return argument if argument and argument.in_register and not why_no_packet(function) else None


def owners(image: Image) -> Iterator[tuple[Function, Contract]]:
    """Yield the functions where every verdict is sound, each with its contract: first those that are known by name."""
    known = (found for name in CONTRACTS if (found := image.functions.lookup(name)))
    others = (found for address in members_of(image) if (found := image.functions.at(address)))
    for function in dict.fromkeys((*known, *others)):
        contract = contract_of(function, image)
        if contract and readable_packet(function) and not _is_forbidden(function):
            yield function, contract


def contract_for(verdict: Verdict, function: Function, image: Image) -> Contract | None:
    """Return a function's contract, or None where it has none and the verdict needs none.

    :raises UnsupportedVerdict: the verdict is not sound at that function
    """
    _check_probe(function, any_function=verdict.any_function)
    if not (verdict.owns or verdict.word == RETURN):
        return None
    contract = contract_of(function, image)
    if contract is None and verdict.owns:
        raise UnsupportedVerdict(
            f"{verdict.word} is not sound at {function.name}()",
            found=f"it is not known to take over its packet: its caller may go on to use it\n{function.signature}",
            hint=f"{verdict.word} works at {', '.join(_nearest(function, image))}\n{_anywhere()} work everywhere",
        )
    return contract


def _check_probe(function: Function, *, any_function: bool = False) -> None:
    """Raise UnsupportedVerdict where no rule can be at a function.

    :param any_function: it need have no packet
    """
    name, argument = function.name, plain_packet(function)
    if _is_forbidden(function):
        raise UnsupportedVerdict(
            f"nothing can be probed in {name}()", found=f"{function.file} is what the agent itself runs on"
        )
    if any_function:
        return
    if argument is None:
        raise UnsupportedVerdict(
            f"{name}() takes no {SKB_TYPE.strip()}", found=function.signature, hint=f"{_without_a_packet()} work there"
        )
    if not argument.in_register:
        raise UnsupportedVerdict(f"{name}() takes its packet on the stack", found=function.signature)
    if why := why_no_packet(function):
        raise UnsupportedVerdict(
            f"{name}() has no packet to look at",
            found=why,
            hint="probe the function that calls it, or set a breakpoint in gdb",
        )


def check_surrounded(function: Function) -> None:
    """Check that the agent can call a function in its caller's place.

    :raises UnsupportedVerdict: it cannot
    """
    _check_probe(function, any_function=True)
    if _is_by_value(function.return_type):
        raise UnsupportedVerdict(
            f"a rule cannot be inside {function.name}()",
            found=f"it returns a structure\n{function.signature}",
            hint="inside a function that it calls, or that calls it",
        )


def _is_by_value(kind: str) -> bool:
    return kind.startswith(("struct ", "union ")) and not kind.endswith("*")


def _is_forbidden(function: Function) -> bool:
    return function.file.startswith(FORBIDDEN_FILES)


def _nearest(function: Function, image: Image) -> list[str]:
    """Return the functions with a contract nearest to another: of its file, of its directory, or those by name."""
    known = [one for one, _ in owners(image)]
    for place in (function.file, function.file.rpartition("/")[0] + "/"):
        if found := [one.name for one in known if one.file.startswith(place)]:
            return found
    return [name for name in CONTRACTS if image.functions.lookup(name)]


def check_value(function: Function, value: str, contract: Contract | None) -> None:
    """Check that a function can return a value without having run.

    :raises UnsupportedVerdict: it returns nothing, something, or what no register holds
    """
    kind = function.return_type
    number, bits = number_of(value), BITS.get(kind, 32 if kind.startswith("enum ") else 64)
    if kind == "void" and value:
        wrong, hint = "returns nothing", f"{function.name} = return"
    elif kind != "void" and not value:
        wrong, hint = f"returns a value ({kind.strip()})", f"{function.name} = return {_a_value(kind)}"
    elif kind.endswith("*") and not (number is not None and -MOST_ERRNO <= number <= 0):
        wrong, hint = "returns a pointer", "NULL, or an error that it may carry: -ENOMEM (include/linux/err.h)"
    elif kind in BOOLEANS and number not in {0, 1}:
        wrong, hint = "returns a bool", "true or false"
    elif _is_by_value(kind):
        wrong, hint = f"returns a {kind}, more than a register holds", "a function that it calls"
    elif number is not None and not -(1 << bits - 1) <= number < 1 << bits:
        wrong, hint = f"returns {kind}", f"a number of {bits} bits"
    elif number is not None and contract and not contract.taken[0] <= _as_int(number) <= contract.taken[1]:
        wrong, hint = f"hands its packet back to its caller by returning {value}", "return 0, or drop"
    else:
        return
    raise UnsupportedVerdict(f"{function.name}() {wrong}", found=function.signature, hint=hint)


def _as_int(number: int) -> int:
    return number - (1 << 32) if number >= 1 << 31 else number


def _a_value(kind: str) -> str:
    return "NULL" if kind.endswith("*") else "false" if kind in BOOLEANS else "-ENOMEM"


def _anywhere() -> str:
    return _listed(row.word for row in ROWS if not row.owns)


def _without_a_packet() -> str:
    return _listed(row.word for row in ROWS if row.any_function)


def _listed(words: Iterable[str]) -> str:
    *some, last = words
    return f"{', '.join(some)} and {last}"


def sound_verdicts(function: Function, image: Image) -> list[str]:
    """Return the words of the verdicts that are sound at a function."""
    return [row.word for row in ROWS if _is_sound(row, function, image)]


def _is_sound(verdict: Verdict, function: Function, image: Image) -> bool:
    try:
        contract = contract_for(verdict, function, image)
        if verdict.word == RETURN:
            check_value(function, "" if function.return_type == "void" else "0", contract)
    except UnsupportedVerdict:
        return False
    return True
