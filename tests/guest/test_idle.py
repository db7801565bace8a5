"""An idle guest sleeps, and each packet wakes it: see src/skblab/image/corrections/idle.py."""

import socket
import time

from skblab.lab import Lab
from skblab.packet import echo_request

GUEST = ("192.168.10.1", 0)
PINGS = 20_000
SLEPT_OVER_S = 0.3  # until the guest's next timer; a busy machine takes a tenth


def test_no_packet_is_slept_over(every_lab: Lab) -> None:
    """Each ping is sent as soon as the last one is answered: when the guest is about to sleep."""
    slowest_s = 0.0
    with every_lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        client.settimeout(5)
        for number in range(PINGS):
            began_s = time.monotonic()
            client.sendto(echo_request(0x5B1B, number), GUEST)
            client.recv(2048)
            slowest_s = max(slowest_s, time.monotonic() - began_s)
    assert slowest_s < SLEPT_OVER_S
