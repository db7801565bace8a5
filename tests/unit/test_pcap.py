"""Packets in a file, and back."""

from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import IPv6
from scapy.utils import RawPcapReader, rdpcap

from skblab.errors import CannotWrite, UsageError
from skblab.packet import Packet
from skblab.pcap import write_pcap
from skblab.summary import ETH_P_ARP, ETH_P_IP, ETH_P_IPV6

PACKETS = [Packet(bytes(IP(ttl=3) / ICMP(seq=7) / b"x"), ETH_P_IP), Packet(bytes(IPv6(hlim=9)), ETH_P_IPV6)]


def test_packets_come_back_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "held.pcap"
    arp = Packet(bytes(28), ETH_P_ARP)
    assert write_pcap(path, [(1_500_000_000, PACKETS[0]), (2, arp), (2_000_000_001, PACKETS[1])]) == 2
    with RawPcapReader(str(path)) as reader:
        assert reader.linktype == 101
    first, second = rdpcap(str(path))
    assert (bytes(first), float(first.time)) == (PACKETS[0].data, 1.5)
    assert bytes(second) == PACKETS[1].data


def test_a_file_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "held.pcap"
    path.write_text("dear to somebody")
    with pytest.raises(CannotWrite, match="cannot write"):
        write_pcap(path, [(1, PACKETS[0])])
    with pytest.raises(UsageError, match="nothing to save"):
        write_pcap(tmp_path / "other", [(1, Packet(bytes(28), ETH_P_ARP))])
    assert path.read_text() == "dear to somebody"
    assert not (tmp_path / "other").exists()
