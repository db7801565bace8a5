"""The guest's part of the torture: sockets of every kind, routes, devices and namespaces come and go under traffic.

Run by the guest's own Python as ``python3 -c TEXT SEED``, with the standard library alone. It ends when its input does,
and prints then, as JSON, how often it did what.
"""

import collections
import contextlib
import json
import os
import random
import select
import socket
import struct
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

HOST4, HOST6 = "192.168.10.254", "fd00:10::254"
INNER4, INNER6 = "10.9.0.2", "fd99::2"  # in a namespace of the guest's
TCP_PORT, UDP_PORT, PEER_PORT, CLOSED_PORT = 80, 7000, 8000, 9
UDP_SOCKETS = 8  # of each family, each connected to a port of the host's
MOST_OPEN = 24
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: close() sends a reset
NFTABLES = """
table inet torture {
	chain in { type filter hook prerouting priority 0; ct state new counter; }
	chain out { type filter hook postrouting priority 0; ct state new counter; }
}
"""
AROUND = """
netns add {name}
link add {link} type veth peer name {peer}
link set {peer} netns {name}
addr add 10.9.0.1/24 dev {link}
addr add fd99::1/64 dev {link} nodad
link set {link} up
"""
INSIDE = """
addr add 10.9.0.2/24 dev {peer}
addr add fd99::2/64 dev {peer} nodad
link set {peer} up
link set lo up
route add default via 10.9.0.1
"""
DEVICES = (
    "link add link vec0 name vlan{n} type vlan id {n}\naddr add 10.{n}.0.1/24 dev vlan{n}\nlink set vlan{n} up",
    "link add br{n} type bridge\naddr add 10.{n}.0.1/24 dev br{n}\nlink set br{n} up",
    "link add tun{n} type ipip remote 192.168.10.254\naddr add 10.{n}.0.1/24 dev tun{n}\nlink set tun{n} up",
)
ROUTES = (
    "route flush cache",
    "-6 route flush cache",
    "neigh flush dev vec0",
    "route replace 192.168.10.254/32 dev vec0 mtu {mtu}\nroute del 192.168.10.254/32",
    "-6 route replace fd00:10::254/128 dev vec0 mtu {mtu}\n-6 route del fd00:10::254/128",
    "addr add 192.168.10.77/24 dev vec0\naddr del 192.168.10.77/24 dev vec0",
)


class Torture:
    """Does one thing after another, by chance."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.done: collections.Counter[str] = collections.Counter()
        self.ip = subprocess.Popen(  # noqa: TID251 - there is nothing of skblab in the guest
            ["ip", "-force", "-batch", "-"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.listeners = [self.listener(socket.AF_INET), self.listener(socket.AF_INET6)]
        self.accepted: list[socket.socket] = []
        self.connecting: list[socket.socket] = []
        self.datagrams: dict[tuple[socket.AddressFamily, int], socket.socket] = {}
        self.echoes: list[socket.socket] = []
        self.namespaces = 0
        self.inside = ""  # the namespace that is there
        self.devices: list[tuple[str, str]] = []
        self.numbers = 0

    def tell_ip(self, lines: str) -> None:
        assert self.ip.stdin
        self.ip.stdin.write(lines.encode() + b"\n")
        self.ip.stdin.flush()

    @staticmethod
    def listener(family: socket.AddressFamily) -> socket.socket:
        one = socket.socket(family, socket.SOCK_STREAM)
        bind(one, TCP_PORT)
        one.listen(16)
        one.setblocking(False)
        return one

    def accept(self) -> None:
        for listener in self.listeners:
            with contextlib.suppress(OSError):
                while len(self.accepted) < MOST_OPEN:
                    one, _ = listener.accept()
                    one.setblocking(False)
                    self.accepted.append(one)
                    self.done["accepted"] += 1

    def serve(self) -> None:
        """Do something with a connection: answer, close, reset."""
        self.accept()
        if not self.accepted:
            return
        place = self.chance.randrange(len(self.accepted))
        one, what = self.accepted[place], self.chance.random()
        with contextlib.suppress(OSError):
            if what < 0.5:
                one.recv(65536)
                one.send(bytes(self.chance.choice((1, 100, 1400, 20000))))
                return
            if what < 0.7:
                one.shutdown(socket.SHUT_WR)
                return
        self.close(self.accepted.pop(place), reset=what > 0.9)

    def close(self, one: socket.socket, *, reset: bool) -> None:
        if reset:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        one.close()
        self.done["reset" if reset else "closed"] += 1

    def connect(self) -> None:
        """Connect to a closed port, here, in a namespace or at the host."""
        address, family = self.chance.choice(
            ((HOST4, socket.AF_INET), (HOST6, socket.AF_INET6), (INNER4, socket.AF_INET), (INNER6, socket.AF_INET6),
             ("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6))
        )  # fmt: skip
        one = socket.socket(family, socket.SOCK_STREAM)
        one.setblocking(False)
        with contextlib.suppress(OSError):
            one.connect((address, CLOSED_PORT))
        self.connecting.append(one)
        if len(self.connecting) > 8:
            self.connecting.pop(self.chance.randrange(8)).close()
        self.done["connected"] += 1

    def datagram(self) -> None:
        """Open, read, answer from or close one of the connected UDP sockets, whatever is queued or held for it."""
        family = self.chance.choice((socket.AF_INET, socket.AF_INET6))
        number = self.chance.randrange(UDP_SOCKETS)
        one = self.datagrams.get((family, number))
        with contextlib.suppress(OSError):
            if one is None:
                one = socket.socket(family, socket.SOCK_DGRAM)
                one.setblocking(False)
                bind(one, UDP_PORT + number)
                one.connect((HOST4 if family == socket.AF_INET else HOST6, PEER_PORT + number))
                self.datagrams[family, number] = one
                return
            what = self.chance.random()
            if what < 0.4:
                one.recv(65536)
            elif what < 0.6:
                one.send(bytes(self.chance.choice((1, 100, 1400, 3000))))
            elif select.select([one], [], [], 0)[0]:
                self.done["closed with a datagram queued"] += 1
            if what < 0.6:
                return
        if one := self.datagrams.pop((family, number), None):
            one.close()
            self.done["UDP closed"] += 1

    def echo(self) -> None:
        """Ping by an ICMP socket, and close one whose answer may be held."""
        address, family, protocol = self.chance.choice(
            ((HOST4, socket.AF_INET, socket.IPPROTO_ICMP), (INNER4, socket.AF_INET, socket.IPPROTO_ICMP),
             (HOST6, socket.AF_INET6, socket.IPPROTO_ICMPV6), (INNER6, socket.AF_INET6, socket.IPPROTO_ICMPV6))
        )  # fmt: skip
        kind = self.chance.choice((socket.SOCK_DGRAM, socket.SOCK_RAW))
        one = socket.socket(family, kind, protocol)
        one.setblocking(False)
        request = struct.pack("!BBHHH", 8 if family == socket.AF_INET else 128, 0, 0xF7FF, 0, 0)
        if family == socket.AF_INET6:
            request = request[:2] + bytes(2) + request[4:]
        with contextlib.suppress(OSError):
            one.sendto(request, (address, 0))
            self.done[f"ICMP {kind.name}"] += 1
        self.echoes.append(one)
        if len(self.echoes) > 8:
            self.echoes.pop(self.chance.randrange(8)).close()

    def talk_inside(self) -> None:
        """Send datagrams to the namespace, which says that there is nobody."""
        for address, family in ((INNER4, socket.AF_INET), (INNER6, socket.AF_INET6)):
            with socket.socket(family, socket.SOCK_DGRAM) as one:
                one.setblocking(False)
                with contextlib.suppress(OSError):
                    for _ in range(4):
                        one.sendto(bytes(self.chance.choice((1, 1000, 3000))), (address, CLOSED_PORT))
                        self.done["to a namespace"] += 1

    def namespace(self) -> None:
        """Make a namespace with connection tracking, or delete it, whatever of it is held."""
        if self.inside:
            self.tell_ip(f"netns del {self.inside}")
            self.inside = ""
            self.done["namespaces deleted"] += 1
            return
        self.namespaces += 1
        names = {"name": f"n{self.namespaces}", "link": f"in{self.namespaces}", "peer": f"out{self.namespaces}"}
        run(["ip", "-force", "-batch", "-"], AROUND.format(**names))
        run(["ip", "-n", names["name"], "-force", "-batch", "-"], INSIDE.format(**names))
        if self.namespaces % 2:
            run(["ip", "netns", "exec", names["name"], "nft", "-f", "-"], NFTABLES)
        self.inside = names["name"]
        self.talk_inside()

    def device(self) -> None:
        """Make a device with an address, or take one away, with traffic through it."""
        if self.devices and (len(self.devices) > 2 or self.chance.random() < 0.5):
            self.take_device()
            return
        self.numbers = self.numbers % 200 + 1
        number = 20 + self.numbers
        lines = self.chance.choice(DEVICES).format(n=number)
        self.tell_ip(lines)
        self.devices.append((lines.rpartition(" ")[0].rpartition(" ")[2], f"10.{number}.0.2"))

    def take_device(self) -> None:
        name, _ = self.devices.pop(self.chance.randrange(len(self.devices)))
        self.tell_ip(f"link del {name}")
        self.done["devices deleted"] += 1

    def talk_by_device(self) -> None:
        if not self.devices:
            return
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one, contextlib.suppress(OSError):
            one.setblocking(False)
            for _ in range(4):
                one.sendto(bytes(100), (self.chance.choice(self.devices)[1], CLOSED_PORT))
                self.done["by a device that comes and goes"] += 1

    def route(self) -> None:
        self.tell_ip(self.chance.choice(ROUTES).format(mtu=self.chance.choice((1280, 1400, 1500))))
        self.done["routes changed"] += 1

    @staticmethod
    def links_left() -> int:
        """Return how many links to namespaces that were deleted stay; the kernel takes such a link away by and by."""
        for _ in range(400):
            left = [name for name in os.listdir("/sys/class/net") if name.startswith(("in", "out"))]  # noqa: PTH208
            if not left:
                break
            select.select([], [], [], 0.05)
        return len(left)

    def run(self) -> None:
        run(["nft", "-f", "-"], NFTABLES)
        run(["sysctl", "-q", "-w", "net.ipv4.ping_group_range=0 2147483647", "net.ipv6.icmp.ratelimit=0",
             "net.ipv4.icmp_ratelimit=0", "net.ipv4.icmp_msgs_per_sec=1000000", "net.ipv4.icmp_msgs_burst=1000000",
             "net.ipv4.ip_forward=1", "net.ipv4.tcp_fin_timeout=2"], "")  # fmt: skip
        print("ready", flush=True)  # noqa: T201
        actions: tuple[tuple[Callable[[], None], int], ...] = (
            (self.serve, 40), (self.datagram, 40), (self.echo, 6), (self.connect, 4), (self.talk_inside, 3),
            (self.talk_by_device, 3), (self.route, 2), (self.device, 1), (self.namespace, 1),
        )  # fmt: skip
        chosen = [action for action, weight in actions for _ in range(weight)]
        for action, _ in actions:  # each at least once, however short the run
            action()
        while not select.select([0], [], [], 0.0005)[0]:
            self.chance.choice(chosen)()
        if self.inside:
            self.namespace()
        while self.devices:
            self.take_device()
        assert self.ip.stdin
        self.ip.stdin.close()
        self.ip.wait()
        self.done["links left"] = self.links_left()
        print(json.dumps(self.done), flush=True)  # noqa: T201


def bind(one: socket.socket, port: int) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if one.family == socket.AF_INET6:
        one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    one.bind(("", port))


def run(argv: list[str], said: str) -> None:
    """Run a program; whether it can do all that depends on what is held and dropped meanwhile."""
    quiet = subprocess.DEVNULL
    subprocess.run(argv, input=said.encode(), stdout=quiet, stderr=quiet, check=False)  # noqa: TID251


os.chdir("/")
Torture(random.Random(int(sys.argv[1]))).run()
