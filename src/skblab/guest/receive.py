"""Let the guest receive packets one by one.

A vector device passes NAPI's list of packets to ``ip_list_rcv()``, which never enters ``ip_rcv()``: nothing could stop
there, and backtraces would differ from the textbooks'. A protocol without ``list_func`` gets its packets one at a time,
through ``func`` (net/core/dev.c ``__netif_receive_skb_list_ptype()``, commit 17266ee93984 "net: ipv4: listified version
of ip_rcv"). So that pointer is cleared in ``ip_packet_type`` and ``ipv6_packet_type`` once the guest is up: one aligned
store, and the kernel reads the pointer again for every list.
"""

import os

from skblab.image.debuginfo import OBJECTS
from skblab.image.index import FunctionIndex

POINTER_BYTES = 8


def one_by_one(pid: int, index: FunctionIndex) -> None:
    """Clear the list receivers in the guest kernel that runs as process *pid*."""
    descriptor = os.open(f"/proc/{pid}/mem", os.O_RDWR | os.O_CLOEXEC)
    try:
        for name in OBJECTS:
            address = index.object_address(name)
            if address is not None:
                os.pwrite(descriptor, bytes(POINTER_BYTES), address)
    finally:
        os.close(descriptor)
