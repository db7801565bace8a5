"""Packets to a file that Wireshark and tcpdump read."""

import struct
from collections.abc import Iterable
from pathlib import Path

from skblab import files
from skblab.errors import UsageError
from skblab.packet import LARGEST_PACKET_BYTES, Packet
from skblab.summary import ETH_P_IP, ETH_P_IPV6

LINKTYPE_RAW = 101  # a packet begins with its IP header, of either version
# draft-ietf-opsawg-pcap: a file's header, and a packet's.
FILE = struct.Struct("<IHHIIII")
RECORD = struct.Struct("<IIII")
NANOSECONDS, VERSION = 0xA1B23C4D, (2, 4)


def write_pcap(path: Path, packets: Iterable[tuple[int, Packet]]) -> int:
    """Write packets, each with its time (CLOCK_REALTIME, ns), to a new pcap file; return how many.

    :raises UsageError: none of the packets is of IP
    :raises CannotWrite: there is such a file, or it cannot be written
    """
    ours = [(at_ns, one.data) for at_ns, one in packets if one.protocol in {ETH_P_IP, ETH_P_IPV6}]
    if not ours:
        raise UsageError("nothing to save", found="raw IP (linktype 101) has no place for other protocols")
    with files.whole(path, new=True) as file:
        file.write(FILE.pack(NANOSECONDS, *VERSION, 0, 0, LARGEST_PACKET_BYTES, LINKTYPE_RAW))
        for at_ns, data in ours:
            file.write(RECORD.pack(*divmod(at_ns, 1_000_000_000), len(data), len(data)) + data)
    return len(ours)
