"""The host's part of the torture: what is sent to the guest, over both families, as fast as it takes it.

Run on the lab's host side as ``python -c TEXT SEED``, with the standard library alone. Prints how many packets it has
sent, a number a line, until its input ends.
"""

import contextlib
import random
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

GUEST4, GUEST6 = "192.168.10.1", "fd00:10::1"
TCP_PORT, UDP_PORT, PEER_PORT, CLOSED_PORT = 80, 7000, 8000, 9
UDP_SOCKETS = 8
AHEAD = 32
MOST_OPEN = 32
POLL_S = 0.001
REST = 2
LONGEST_LIFE_S = 3.0  # of a connection: a SYN-ACK that is held is sent again after 1 s
ECHO_REQUEST4, ECHO_REQUEST6 = 8, 128
RESET = struct.pack("ii", 1, 0)


def echo_request(kind: int, sequence: int, payload: bytes) -> bytes:
    """Return an ICMP echo request; the checksum of an ICMPv6 one is the kernel's to write (RFC 3542 section 3.1)."""
    message = struct.pack("!BBHHH", kind, 0, 0, 7, sequence & 0xFFFF) + payload
    total = sum(struct.unpack(f"!{len(message) // 2}H", message))
    total = (total & 0xFFFF) + (total >> 16)
    total = (total & 0xFFFF) + (total >> 16)
    return message[:2] + struct.pack("!H", ~total & 0xFFFF) + message[4:] if kind == ECHO_REQUEST4 else message


class Flood:
    """Sends some, and waits until the guest has taken them."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.icmp4 = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.icmp6 = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self.udp = {family: [self.peer(family, number) for number in range(UDP_SOCKETS)]
                    for family in (socket.AF_INET, socket.AF_INET6)}  # fmt: skip
        self.icmp4.setblocking(False)
        self.icmp6.setblocking(False)
        self.connections: list[tuple[float, socket.socket]] = []
        self.sent = 0

    @staticmethod
    def peer(family: socket.AddressFamily, number: int) -> socket.socket:
        one = socket.socket(family, socket.SOCK_DGRAM)
        one.setblocking(False)
        if family == socket.AF_INET6:
            one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        one.bind(("", PEER_PORT + number))
        return one

    def run(self) -> None:
        while not select.select([0], [], [], 0)[0]:
            began_s = time.monotonic()
            if self.chance.random() < 0.05:
                subprocess.run(["ip", "neigh", "flush", "all"], check=True)  # noqa: TID251 - nothing of skblab is here
            for _ in range(AHEAD):
                with contextlib.suppress(OSError):  # a full queue, an error that an earlier one has caused
                    self.send()
                    self.sent += 1
            self.turn_connections()
            self.wait_for_the_guest()
            sys.stdout.write(f"{self.sent}\n")
            sys.stdout.flush()
            # The guest has one processor: while it receives, its programs do not run, and no rule comes or goes.
            select.select([0], [], [], REST * (time.monotonic() - began_s))

    def send(self) -> None:
        what, payload = self.chance.random(), bytes(self.chance.choice((0, 8, 56, 500, 1400, 3000)))
        if what < 0.4:
            self.icmp4.sendto(echo_request(ECHO_REQUEST4, self.sent, payload), (GUEST4, 0))
        elif what < 0.6:
            self.icmp6.sendto(echo_request(ECHO_REQUEST6, self.sent, payload), (GUEST6, 0))
        else:
            family, address = self.chance.choice(((socket.AF_INET, GUEST4), (socket.AF_INET6, GUEST6)))
            number = self.chance.randrange(UDP_SOCKETS)
            port = CLOSED_PORT if what > 0.95 else UDP_PORT + number
            self.udp[family][number].sendto(payload, (address, port))

    def turn_connections(self) -> None:
        """Begin connections, say something, end some in one way or the other."""
        now_s = time.monotonic()
        while len(self.connections) < MOST_OPEN and self.chance.random() < 0.7:
            family, address = self.chance.choice(((socket.AF_INET, GUEST4), (socket.AF_INET6, GUEST6)))
            one = socket.socket(family, socket.SOCK_STREAM)
            one.setblocking(False)
            with contextlib.suppress(OSError):
                one.connect((address, TCP_PORT))
            self.connections.append((now_s + self.chance.random() ** 3 * LONGEST_LIFE_S, one))
        left = []
        for until_s, one in self.connections:
            if now_s > until_s:
                if self.chance.random() < 0.4:
                    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                one.close()
                continue
            left.append((until_s, one))
            with contextlib.suppress(OSError):
                if self.chance.random() < 0.3:
                    one.send(bytes(self.chance.choice((1, 100, 5000))))
                one.recv(65536)
        self.connections = left

    def wait_for_the_guest(self) -> None:
        """Wait until the guest has taken all from the link; what is not read here is the kernel's to throw away.

        There is no event for that: the packet socket, the link's far end, is another process's.
        """
        while any(int(line.split()[6]) for line in Path("/proc/net/packet").read_text().splitlines()[1:]):
            select.select([0], [], [], POLL_S)
        for family in self.udp.values():
            for one in family:
                with contextlib.suppress(OSError):
                    one.recv(65536)


Flood(random.Random(int(sys.argv[1]))).run()
