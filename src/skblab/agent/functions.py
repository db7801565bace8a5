"""Which verdict is sound where: what may be done to a packet depends on who owns it and what the caller is told.

A function of this table takes over the packet: whoever called it is done with it, and only wants to know how it went.
So the packet may be set aside, freed or copied in its place, if the caller gets a value that fits. Everywhere else a
packet can be traced and stopped at.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from skblab.errors import UnsupportedVerdict
from skblab.image.index import SKB_TYPE, Function
from skblab.rule import VERDICTS

NET_RX_DROP = 1  # include/linux/netdevice.h
NET_XMIT_DROP = 1
OWNING = frozenset({"hold", "delay", "drop", "duplicate", "edit"})


@dataclass(frozen=True, slots=True)
class Takeover:
    """A function that takes over its packet.

    :param held: the return value where the packet is held
    :param dropped: the return value where it is dropped
    :param parsed: the kernel has checked and parsed the network header before, and relies on that
    :param fragmented: nothing fragments the packet after this: it must not be longer than its device's MTU
    """

    held: int = 0
    dropped: int = 0
    parsed: bool = True
    fragmented: bool = False


# In the order in which a packet meets them.
TABLE: dict[str, Takeover] = {
    # Received, any protocol (net/core/dev.c). The packet types' functions return NET_RX_*, and nobody looks.
    "ip_rcv": Takeover(dropped=NET_RX_DROP, parsed=False),
    "ip_local_deliver": Takeover(dropped=NET_RX_DROP),
    "ip_local_deliver_finish": Takeover(),
    # A protocol's handler returns 0, or minus a protocol to go on with (net/ipv4/ip_input.c ip_protocol_deliver_rcu()).
    "icmp_rcv": Takeover(),
    "tcp_v4_rcv": Takeover(),
    "udp_rcv": Takeover(),
    "arp_rcv": Takeover(dropped=NET_RX_DROP, parsed=False),
    "arp_process": Takeover(dropped=NET_RX_DROP),
    "ipv6_rcv": Takeover(dropped=NET_RX_DROP, parsed=False),
    "ip6_input": Takeover(),
    # Above 0 would be a next header to go on with (net/ipv6/ip6_input.c ip6_protocol_deliver_rcu()).
    "icmpv6_rcv": Takeover(),
    "tcp_v6_rcv": Takeover(),
    "udpv6_rcv": Takeover(),
    # Sent. 0 is success, and what a sender is told of a drop is what a full queue would tell it.
    "ip_output": Takeover(dropped=NET_XMIT_DROP),
    "ip_finish_output2": Takeover(dropped=NET_XMIT_DROP, parsed=False, fragmented=True),
    "ip6_output": Takeover(dropped=NET_XMIT_DROP),
    "ip6_finish_output2": Takeover(dropped=NET_XMIT_DROP, parsed=False, fragmented=True),
    "__dev_queue_xmit": Takeover(dropped=NET_XMIT_DROP, parsed=False, fragmented=True),
}

# Where the agent itself would run inside itself, or the stack is not the kernel's: nothing may be probed there.
FORBIDDEN_FILES = ("arch/um/", "arch/x86/um/", "kernel/time/", "kernel/softirq.c", "kernel/bpf/", "lib/")

# net/core/skbuff.c, net/core/datagram.c, net/unix/af_unix.c: what is given is no packet that can be looked at.
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
        "what it takes is no packet, but a place in a queue",
    ),
}


def no_packet(function: Function) -> str:
    """Return why the packet that a function takes cannot be looked at; "" where it can."""
    return NO_PACKETS.get(function.name.partition(".")[0], "")


def nearest(function: Function, files: Callable[[str], str]) -> list[str]:
    """Return the table's functions that are nearest to another: of its file, else of its directory, else all."""
    for place in (function.file, function.file.rpartition("/")[0] + "/"):
        if found := [name for name in TABLE if files(name).startswith(place)]:
            return found
    return list(TABLE)


def check(verdict: str, function: Function, files: Callable[[str], str] = lambda _: "") -> Takeover | None:
    """Return what a function's callers are told, or None where nothing has to be told to them.

    :param files: the kernel's source file of a function
    :raises UnsupportedVerdict: the verdict is not sound there
    """
    name = function.name
    if function.file.startswith(FORBIDDEN_FILES):
        raise UnsupportedVerdict(
            f"nothing can be probed in {name}()", found=f"{function.file} is what the agent itself runs on"
        )
    if function.skb_parameter is None:
        raise UnsupportedVerdict(f"{name}() takes no {SKB_TYPE.strip()}", found=function.signature)
    if function.skb_parameter >= 6:
        raise UnsupportedVerdict(f"{name}() takes its packet on the stack", found=function.signature)
    if why := no_packet(function):
        raise UnsupportedVerdict(
            f"{name}() has no packet to look at",
            found=why,
            hint="probe the function that calls it, or set a breakpoint in gdb",
        )
    takeover = TABLE.get(name)
    if takeover is None and verdict in OWNING:
        raise UnsupportedVerdict(
            f"{verdict} is not sound at {name}()",
            found="it is not known to take over its packet: its caller may go on to use it\n" + function.signature,
            hint=f"{verdict} works at {', '.join(nearest(function, files))}\ntrace, accept and stop work everywhere",
        )
    return takeover


def sound_verdicts(function: Function) -> list[str]:
    """Return the verdicts that are sound at a function."""
    sound = []
    for verdict in VERDICTS:
        with contextlib.suppress(UnsupportedVerdict):
            check(verdict, function)
            sound.append(verdict)
    return sound
