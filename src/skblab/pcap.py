"""Packets to a file that Wireshark and tcpdump read."""

from collections.abc import Iterable
from pathlib import Path

from skblab.errors import UsageError
from skblab.packet import ETH_P_IP, ETH_P_IPV6, Packet

LINKTYPE_RAW = 101  # a packet begins with its IP header, of either version


def write_pcap(path: Path, packets: Iterable[tuple[float, Packet]]) -> int:
    """Write packets, each with its time (CLOCK_REALTIME, s), to a new pcap file; return how many.

    :raises UsageError: there is such a file, it cannot be written, or none of the packets is of IP
    """
    from scapy.utils import wrpcap  # noqa: PLC0415 - as in packet.py: half a second

    layers = []
    for at_s, packet in packets:
        if packet.protocol in {ETH_P_IP, ETH_P_IPV6}:
            layer = type(packet.layers)(packet.data)
            layer.time = at_s
            layers.append(layer)
    if not layers:
        raise UsageError("nothing to save", found="raw IP (linktype 101) has no place for other protocols")
    try:
        with path.open("xb") as file:
            wrpcap(file, layers, linktype=LINKTYPE_RAW, nano=True)
    except OSError as error:
        raise UsageError(f"cannot save to {path}", found=error.strerror or str(error), mend="another name") from None
    return len(layers)
