"""What a function that takes over its packet promises its caller: its *contract*.

Its caller does not use the packet afterwards and reads nothing but the return value. So the packet can be held, freed
or copied at the function's entry, and the caller gets a return value that fits. Some such functions are known by name.
The others are found by the member of a structure that points to them: every ``net_device_ops.ndo_start_xmit`` is called
in the same way, your own driver's, too.
"""

from dataclasses import dataclass

from skblab.agent.abi import LEAST_INT, MOST_INT
from skblab.image.image import Image
from skblab.image.index import Function
from skblab.image.members import members_of

NET_RX_DROP = 1  # include/linux/netdevice.h
NET_XMIT_DROP = 1
MOST_TRANSMITTED = (
    0xE  # include/linux/netdevice.h dev_xmit_complete(): from NET_XMIT_MASK on it has not taken the packet
)


@dataclass(frozen=True)
class Contract:
    """What a function that owns its packet promises its caller.

    :param held: the return value where the packet is held
    :param dropped: the return value where the packet is dropped
    :param parsed: the kernel has checked and parsed the network header before, and relies on that
    :param fragmented: no later function fragments the packet: it must fit its device's MTU
    :param taken: the first and last return value by which it has taken its packet; by another one it hands it back
    :param transmits: it is a driver's ndo_start_xmit(), which is called under a lock, while the device is up
    """

    held: int = 0
    dropped: int = 0
    parsed: bool = True
    fragmented: bool = False
    taken: tuple[int, int] = (LEAST_INT, MOST_INT)
    transmits: bool = False


# net/ipv4/ip_input.c ip_protocol_deliver_rcu(): below 0 it is minus the protocol to try next.
HANDLER = Contract(taken=(0, MOST_INT))
# net/ipv6/ip6_input.c ip6_protocol_deliver_rcu(): above 0 it is the next header to try.
HANDLER6 = Contract(taken=(LEAST_INT, 0))
TAP = Contract(dropped=NET_RX_DROP, parsed=False)  # net/core/dev.c: NET_RX_*, and no caller reads it
OUTPUT = Contract(dropped=NET_XMIT_DROP)  # 0 is success; a dropped packet returns what a full queue returns
LAST_OUTPUT = Contract(dropped=NET_XMIT_DROP, parsed=False, fragmented=True)
BRIDGED = Contract(parsed=False, fragmented=True)

# In the order in which a packet meets them.
CONTRACTS: dict[str, Contract] = {
    # Received.
    "ip_rcv": TAP,
    "ip_local_deliver": Contract(dropped=NET_RX_DROP),
    "ip_local_deliver_finish": Contract(),
    "icmp_rcv": HANDLER,
    "tcp_v4_rcv": HANDLER,
    "udp_rcv": HANDLER,
    "arp_rcv": TAP,
    "arp_process": Contract(dropped=NET_RX_DROP),
    "ipv6_rcv": TAP,
    "ip6_input": Contract(),
    "icmpv6_rcv": HANDLER6,
    "tcp_v6_rcv": HANDLER6,
    "udpv6_rcv": HANDLER6,
    # By way of udp_sock.encap_rcv (net/ipv4/udp.c udp_queue_rcv_one_skb()): another value than 0 is for UDP's caller.
    "vxlan_rcv": Contract(taken=(0, 0)),
    # Forwarded: dst_entry.input, and an okfn of the bridge.
    "ip_forward": Contract(dropped=NET_RX_DROP),
    "ip6_forward": Contract(dropped=NET_RX_DROP),
    "br_handle_frame_finish": BRIDGED,
    "br_forward_finish": BRIDGED,
    "br_dev_queue_push_xmit": BRIDGED,
    # Sent.
    "ip_output": OUTPUT,
    "ip_mc_output": OUTPUT,
    "ip_finish_output2": LAST_OUTPUT,
    "ip6_output": OUTPUT,
    "ip6_finish_output2": LAST_OUTPUT,
    "__dev_queue_xmit": LAST_OUTPUT,
}
BY_MEMBER: dict[str, Contract] = {
    "packet_type.func": TAP,
    "net_protocol.handler": HANDLER,
    "inet6_protocol.handler": HANDLER6,
    "xfrm_tunnel.handler": Contract(taken=(0, 0)),  # net/ipv4/tunnel4.c tunnel4_rcv(): else it asks the next one
    "net_device_ops.ndo_start_xmit": Contract(
        parsed=False, fragmented=True, taken=(LEAST_INT, MOST_TRANSMITTED), transmits=True
    ),
}


def contract_of(function: Function, image: Image) -> Contract | None:
    """Return a function's contract; None where it is not known to take over its packet."""
    return CONTRACTS.get(function.name) or _contract_by_member(function, image)


def contract_named(name: str, image: Image) -> Contract | None:
    """Return the contract of the function of a name, as contract_of(); most are known without the index."""
    if known := CONTRACTS.get(name):
        return known
    found = image.functions.lookup(name)
    return _contract_by_member(found, image) if found else None


def _contract_by_member(function: Function, image: Image) -> Contract | None:
    contracts = {BY_MEMBER[member] for member in pointed_to(function, image)}
    return contracts.pop() if len(contracts) == 1 else None


def pointed_to(function: Function, image: Image) -> tuple[str, ...]:
    """Return the members of structures that point to a function: ``net_device_ops.ndo_start_xmit``."""
    return members_of(image).get(function.address, ())
