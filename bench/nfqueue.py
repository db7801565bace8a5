"""Delay every packet of the queue: the program that a user of NFQUEUE would write. Runs in the guest.

Usage: nfqueue.py SECONDS. Listens on a TCP port when it is ready.
Messages: include/uapi/linux/netfilter/nfnetlink_queue.h.
"""

import collections
import select
import socket
import struct
import sys
import time

NETLINK_NETFILTER, SUBSYSTEM_QUEUE = 12, 3
PACKET, VERDICT, CONFIG = 0, 1, 2
CONFIG_COMMAND, CONFIG_PARAMETERS, BIND, COPY_PACKET = 1, 2, 1, 2
PACKET_HEADER, VERDICT_HEADER, ACCEPT = 1, 2, 1
QUEUE = 0
SPIN_S = 0.0005  # busy wait at the end: select() alone is late by the timer slack


def message(kind: int, attribute: int, data: bytes) -> bytes:
    """Return one netlink message for the queue, with one attribute."""
    body = struct.pack("=BBH", socket.AF_UNSPEC, 0, socket.htons(QUEUE))
    body += struct.pack("=HH", 4 + len(data), attribute) + data.ljust(-(-len(data) // 4) * 4, b"\0")
    return struct.pack("=IHHII", 16 + len(body), SUBSYSTEM_QUEUE << 8 | kind, 1, 0, 0) + body


def packet_numbers(data: bytes) -> list[bytes]:
    """Return the numbers (big endian) of the packets in some messages."""
    numbers = []
    while len(data) >= 20:
        length, kind = struct.unpack_from("=IH", data)
        if kind == SUBSYSTEM_QUEUE << 8 | PACKET:
            at = 20
            while at < length:
                size, attribute = struct.unpack_from("=HH", data, at)
                if attribute == PACKET_HEADER:
                    numbers.append(data[at + 4 : at + 8])
                at += -(-size // 4) * 4
        data = data[-(-length // 4) * 4 :]
    return numbers


def main(delay_s: float) -> None:
    """Serve the queue."""
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
    netlink.bind((0, 0))
    netlink.send(message(CONFIG, CONFIG_COMMAND, struct.pack(">BxH", BIND, socket.AF_INET)))
    netlink.send(message(CONFIG, CONFIG_PARAMETERS, struct.pack(">IB", 0xFFFF, COPY_PACKET)))
    _said = socket.create_server(("127.0.0.1", 0))
    waiting: collections.deque[tuple[float, bytes]] = collections.deque()
    while True:
        left_s = max(waiting[0][0] - time.perf_counter() - SPIN_S, 0) if waiting else None
        ready, _, _ = select.select([netlink], [], [], left_s)
        if ready:
            due_s = time.perf_counter() + delay_s
            waiting.extend((due_s, number) for number in packet_numbers(netlink.recv(1 << 17)))
        elif waiting:
            due_s, number = waiting.popleft()
            while time.perf_counter() < due_s:
                pass
            netlink.send(message(VERDICT, VERDICT_HEADER, struct.pack(">I", ACCEPT) + number))


main(float(sys.argv[1]))
