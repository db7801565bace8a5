"""The nodes of a guest in virtual time: network namespaces in it, each with an address on the guest's link."""

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass

from skblab.errors import UsageError
from skblab.host.links import Addresses

HOST = "host"  # the node at the other end of the guest's link
OWN = "guest"  # the guest's own namespace
NAME = re.compile(r"[a-z][a-z0-9_-]{0,14}")  # also a network device's (IFNAMSIZ)
MOST = 16  # beside the host; kernel/init/nodes.c MOST_NODES


@dataclass(frozen=True)
class Node:
    """A node: its name, its device, and the device's addresses with their prefix lengths."""

    name: str
    device: str
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        return ",".join((self.name, self.device, *self.addresses))


def nodes(names: Sequence[str], addresses: Addresses) -> list[Node]:
    """Return the nodes, the host first; the others have the addresses behind the guest's.

    :raises UsageError: a name cannot be a node's, or there are too many
    """
    if len(names) > MOST:
        raise UsageError(f"{len(names)} nodes", found=f"a lab has {MOST} at most")
    for place, name in enumerate(names):
        if not NAME.fullmatch(name):
            raise UsageError(
                f"no name for a node: {name!r}", hint="a letter, then letters, digits, - and _; 15 at most"
            )
        if name in (HOST, OWN, *names[:place]):
            raise UsageError(f"two nodes are called {name}", hint=f"{OWN} and {HOST} are always there")
    ends = [Node(HOST, "skb0", addresses.host)]
    for number, name in enumerate(names, 1):
        own = tuple(_behind(address, number) for address in addresses.guest)
        ends.append(Node(name, "eth0", own))
    return ends


def _behind(address: str, number: int) -> str:
    interface = ipaddress.ip_interface(address)
    return f"{interface.ip + number}/{interface.network.prefixlen}"


def words(ends: Sequence[Node], addresses: Addresses, seed: int) -> tuple[str, ...]:
    """Return what the kernel's command line has for a guest in virtual time (kernel/init/nodes.c)."""
    guest = Node(OWN, "vec0", addresses.guest)
    names = [f"{address.partition('/')[0]}={node.name}" for node in (guest, *ends) for address in node.addresses]
    return (
        f"random_seed={seed}",
        "norandmaps",
        f"skblab_nodes={';'.join(map(str, ends))}",
        f"skblab_link0={','.join(('vec0', *addresses.guest))}",
        f"skblab_hosts={','.join(names)}",
    )
