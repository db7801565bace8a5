"""Run in a guest: for each line of input, hold a conversation of that name in the guest, and print a line at its end.

The other end is a network namespace of its own, behind veth and a bridge.
"""

# ruff: noqa: T201, TID251 - a program in a guest, without skblab

import contextlib
import errno
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable

FAR4, FAR6, GROUP = "10.9.0.2", "fd99::2", "239.1.1.1"
PORT, GROUPS_PORT = 90, 91
IP_RECVOPTS, UDP_SEGMENT, UDP_GRO, NETLINK_ROUTE = 6, 103, 104, 0
ETH_P_ALL = 3
PATIENCE_S = 20.0

NETWORK = """
ip link set lo up
ip netns add far
ip link add br0 type bridge
ip link add v0 type veth peer name v1 netns far
ip link set v0 master br0
ip addr add 10.9.0.1/24 dev br0
ip addr add fd99::1/64 dev br0 nodad
ip link add link br0 name br0.5 type vlan id 5
ip link add vx0 type vxlan id 7 local 10.9.0.1 remote 10.9.0.2 dstport 4789 dev br0
ip link add t0 type ipip local 10.9.0.1 remote 10.9.0.2
ip addr add 10.9.5.1/24 dev br0.5
ip addr add 10.9.7.1/24 dev vx0
ip addr add 10.9.4.1/24 dev t0
for device in v0 br0 br0.5 vx0 t0; do ip link set $device up; done
sysctl -qw net.ipv4.ping_group_range='0 2147483647'
ip -n far link add link v1 name v1.5 type vlan id 5
ip -n far link add vx0 type vxlan id 7 local 10.9.0.2 remote 10.9.0.1 dstport 4789 dev v1
ip -n far link add t0 type ipip local 10.9.0.2 remote 10.9.0.1
ip -n far addr add 10.9.0.2/24 dev v1
ip -n far addr add fd99::2/64 dev v1 nodad
ip -n far addr add 10.9.5.2/24 dev v1.5
ip -n far addr add 10.9.7.2/24 dev vx0
ip -n far addr add 10.9.4.2/24 dev t0
for device in lo v1 v1.5 vx0 t0; do ip -n far link set $device up; done
tc -n far qdisc add dev v1 root netem delay 2ms 1ms loss 2%
"""


def server() -> None:
    """Answer in the other namespace; print a line when ready."""
    udp = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    udp.setsockopt(socket.SOL_UDP, UDP_GRO, 1)
    for option in (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVTCLASS, socket.IPV6_RECVHOPLIMIT):
        udp.setsockopt(socket.IPPROTO_IPV6, option, 1)
    udp.bind(("::", PORT))
    group = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    group.bind((GROUP, GROUPS_PORT))
    member = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(FAR4))
    group.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, member)
    tcp = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    tcp.bind(("::", PORT))
    tcp.listen()
    for one in (udp, group):
        threading.Thread(target=echo, args=(one,), daemon=True).start()
    print("ready", flush=True)
    while True:
        client, _ = tcp.accept()
        threading.Thread(target=swallow, args=(client,), daemon=True).start()


def echo(one: socket.socket) -> None:
    while True:
        one.recvfrom(9, socket.MSG_PEEK)
        data, _, _, sender = one.recvmsg(65536, 1024)
        one.sendto(data[:1000], sender)


def swallow(client: socket.socket) -> None:
    with client:
        size = 0
        while data := client.recv(65536):
            size += len(data)
        client.sendall(str(size).encode())


def datagrams(family: socket.AddressFamily, address: str, size: int = 100, count: int = 3) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as one:
        one.settimeout(0.3)
        one.connect((address, PORT))
        until_answered(lambda: [one.send(bytes(size)) for _ in range(count)], one)


def until_answered(ask: Callable[[], object], one: socket.socket) -> bytes:
    """Ask until an answer comes: the other end loses some."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        ask()
        with contextlib.suppress(TimeoutError):
            return one.recv(65536)
    raise TimeoutError("no answer")


def closing() -> None:
    """Have datagrams queued at a socket, peek at one, and close it."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as queue,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
    ):
        queue.bind(("127.0.0.1", 0))
        one.connect(queue.getsockname())
        for _ in range(5):
            one.send(b"x" * 100)
        queue.recv(10, socket.MSG_PEEK)
        queue.recv(10)


def segmented() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.3)
        one.setsockopt(socket.SOL_UDP, UDP_SEGMENT, 500)
        one.connect((FAR4, PORT))
        until_answered(lambda: one.send(bytes(2000)), one)


def multicast() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.3)
        one.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.9.0.1"))
        until_answered(lambda: one.sendto(b"all", (GROUP, GROUPS_PORT)), one)


def stream(family: socket.AddressFamily, address: str) -> None:
    """Send enough over a link that loses and reorders to have queues of every kind."""
    with socket.socket(family, socket.SOCK_STREAM) as one:
        one.settimeout(PATIENCE_S)
        one.connect((address, PORT))
        one.sendall(bytes(150_000))
        one.shutdown(socket.SHUT_WR)
        assert one.recv(100) == b"150000"


def request(sequence: int = 1) -> bytes:
    message = struct.pack("!BBHHH", 8, 0, 0, 7, sequence)
    total = sum(struct.unpack("!4H", message))
    return message[:2] + struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF) + message[4:]


def ping(kind: socket.SocketKind) -> None:
    with socket.socket(socket.AF_INET, kind, socket.IPPROTO_ICMP) as one:
        one.settimeout(0.3)
        until_answered(lambda: one.sendto(request(), (FAR4, 0)), one)


def packet() -> None:
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL)) as one:
        one.bind(("br0", ETH_P_ALL))
        one.settimeout(PATIENCE_S)
        ping(socket.SOCK_RAW)
        one.recv(65536)


def unix() -> None:
    """Pass bytes, messages and a descriptor, wait for some, and close with something queued."""
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
        with ours, theirs:
            late = threading.Timer(0.05, ours.send, [b"late"])
            late.start()
            assert theirs.recv(100) == b"late"
            late.join()
            socket.send_fds(ours, [b"descriptor"], [0])
            _, descriptors, _, _ = socket.recv_fds(theirs, 100, 1)
            os.close(descriptors[0])
            ours.send(bytes(60_000))
            ours.send(b"unread")
            theirs.recv(100, socket.MSG_PEEK)
            theirs.recv(70_000)


def netlink() -> None:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_ROUTE) as one:
        one.send(struct.pack("=IHHIIBxxx", 20, 18, 0x301, 1, 0, 0))  # RTM_GETLINK, a dump
        one.recv(65536)
    subprocess.run(["ip", "link", "add", "d9", "type", "dummy"], check=True)
    subprocess.run(["ip", "link", "del", "d9"], check=True)


def unreachable() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.settimeout(0.3)
        one.connect((FAR4, 9))
        with contextlib.suppress(ConnectionRefusedError):
            until_answered(lambda: one.send(b"?"), one)
    with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as one:
        assert one.connect_ex((FAR6, 9)) == errno.ECONNREFUSED


INET, INET6 = socket.AF_INET, socket.AF_INET6
CONVERSATIONS: dict[str, Callable[[], object]] = {
    "udp": lambda: datagrams(INET, FAR4),
    "udp6": lambda: datagrams(INET6, FAR6),
    "closing": closing,
    "segmented": segmented,
    "multicast": multicast,
    "fragments": lambda: datagrams(INET, FAR4, 4000),
    "fragments6": lambda: datagrams(INET6, FAR6, 4000),
    "tcp": lambda: stream(INET, FAR4),
    "tcp6": lambda: stream(INET6, FAR6),
    "ping": lambda: ping(socket.SOCK_DGRAM),
    "raw": lambda: ping(socket.SOCK_RAW),
    "packet": packet,
    "unix": unix,
    "netlink": netlink,
    "unreachable": unreachable,
    "vlan": lambda: datagrams(INET, "10.9.5.2"),
    "vxlan": lambda: datagrams(INET, "10.9.7.2"),
    "ipip": lambda: datagrams(INET, "10.9.4.2"),
}


def main() -> None:
    subprocess.run(["sh", "-ec", NETWORK], check=True)
    program = sys.argv[1]
    far = ["ip", "netns", "exec", "far", sys.executable, "-c", program, program, "server"]
    with subprocess.Popen(far, stdout=subprocess.PIPE) as other:
        assert other.stdout
        other.stdout.readline()
        print("ready", flush=True)
        for line in sys.stdin:
            try:
                CONVERSATIONS[line.strip()]()
            except Exception as error:  # noqa: BLE001 - for the test to read
                print(f"{line.strip()}: {error!r}", flush=True)
            else:
                print("done", flush=True)
        other.kill()


if __name__ == "__main__":
    server() if sys.argv[2:] == ["server"] else main()
