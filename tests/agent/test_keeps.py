"""What a held packet needs is there when it goes on, whatever the guest does meanwhile, and goes with its network.

On the kernel that looks for its own mistakes: there a socket that is freed under a packet is seen, not only by luck.
"""

import contextlib
import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from skblab.agent import abi
from skblab.agent.abi import Cause
from skblab.agent.packets import State
from skblab.errors import SkblabError, Timeout, UsageError
from skblab.guest.exec import Command
from skblab.image.recipe import SERIES
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.packet import echo_request
from skblab.rule import Occurrence, Rule
from skblab.verdict import VERDICTS
from support import read_until

GUEST, HOST = "192.168.10.1", "192.168.10.254"
GUEST6, HOST6 = "fd00:10::1", "fd00:10::254"
SYN_ACK = "tcp src port 80 and tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)"

# A connected UDP socket that says "up", and is closed when its reader answers; then others take its memory.
CONNECTED = """
import socket, sys
family, here, there = int(sys.argv[1]), sys.argv[2], sys.argv[3]
one = socket.socket(family, socket.SOCK_DGRAM)
one.bind((here, 7777)); one.connect((there, 8888))
print("up", flush=True); sys.stdin.readline()
one.close()
others = [socket.socket(family, socket.SOCK_DGRAM) for _ in range(200)]
print("closed", flush=True); sys.stdin.readline()
"""
NAMESPACE = """
ip netns add z && ip link add v0 type veth peer name v1 netns z
ip addr add 10.9.0.1/24 dev v0 && ip addr add fd99::1/64 dev v0 nodad && ip link set v0 up
ip -n z addr add 10.9.0.2/24 dev v1 && ip -n z addr add fd99::2/64 dev v1 nodad
ip -n z link set v1 up && ip -n z link set lo up
"""
CONNTRACK = """
for where in "" "ip netns exec z"; do
  $where nft add table inet t
  $where nft 'add chain inet t p { type filter hook postrouting priority 0; }'
  $where nft add rule inet t p ct state new counter
done
"""
# Waits for a line at the end.
ECHO = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("192.168.10.1", 7777)); one.connect(("192.168.10.254", 8888))
print("up"); one.send(one.recv(100)); sys.stdin.readline()
"""
HTTP = "import http.server as h; s = h.HTTPServer(('', 80), h.SimpleHTTPRequestHandler); print('up'); s.serve_forever()"


@pytest.fixture(scope="module")
def kasan() -> Iterator[Lab]:
    with Lab(image=find_image(variant="kasan"), root="host", memory_mib=512, boot_timeout_s=60) as lab:
        yield lab


def shell(lab: Lab, script: str, *, timeout_s: float = 60) -> str:
    done = lab.guest.run(["sh", "-c", script], timeout_s=timeout_s)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextlib.contextmanager
def started(lab: Lab, program: str, *arguments: str) -> Iterator[Command]:
    argv = ["python3", "-u", "-c", program, *arguments]
    with contextlib.closing(lab.guest.popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) as running:
        hear(running, "up")
        yield running


def hear(running: Command, word: str) -> None:
    assert running.stdout
    read_until(running.stdout.fileno(), lambda text: word in text)


def tell(running: Command) -> None:
    assert running.stdin
    running.stdin.write(b"\n")
    running.stdin.flush()


def test_an_answer_to_a_syn_outlives_its_request(kasan: Lab) -> None:
    """The request becomes a connection, and is freed, while the first SYN-ACK is held."""
    with started(kasan, HTTP), kasan.rule(f"ip_output = delay 3s @1 if {SYN_ACK}") as rule:
        done = kasan.run(["curl", "-s", "-4", "-o", "/dev/null", "http://guest/"], timeout_s=30)
        assert done.returncode == 0
        counts = rule.armed.counts
        assert (counts.held, counts.released) == (1, 0)
        shell(kasan, "for i in 1 2 3 4 5; do ip -4 route get 192.168.10.254 >/dev/null; done; sleep 3")
        assert rule.armed.counts.released == 1


@pytest.mark.parametrize(
    ("function", "family"),
    [
        ("ip_local_deliver", socket.AF_INET), ("udp_rcv", socket.AF_INET), ("ip_rcv", socket.AF_INET),
        ("udpv6_rcv", socket.AF_INET6), ("ip6_input", socket.AF_INET6),
    ],
)  # fmt: skip
def test_a_datagram_outlives_its_socket(kasan: Lab, function: str, family: int) -> None:
    here, there = (GUEST, HOST) if family == socket.AF_INET else (GUEST6, HOST6)
    with (
        started(kasan, CONNECTED, str(family), here, there) as server,
        kasan.socket(socket.AddressFamily(family), socket.SOCK_DGRAM) as client,
        kasan.hold(function, "udp dst port 7777") as held,
    ):
        client.bind((there, 8888))
        client.connect((here, 7777))
        client.settimeout(10)
        client.send(b"for the one who was there")
        (packet,) = held.take(1)
        tell(server)
        hear(server, "closed")
        packet.release()
        assert packet.wait(10)
        assert packet.state is State.RELEASED
        # Nobody has the port any more, and the kernel says so, as to one who comes late.
        with pytest.raises(ConnectionRefusedError):
            client.recv(100)


def test_a_datagram_that_is_held_reaches_its_socket(kasan: Lab) -> None:
    with (
        started(kasan, ECHO),
        kasan.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        kasan.hold("ip_local_deliver", "udp dst port 7777") as held,
    ):
        client.bind((HOST, 8888))
        client.settimeout(10)
        client.sendto(b"hello", (GUEST, 7777))
        held.take(1)[0].release()
        assert client.recv(100) == b"hello"


@pytest.mark.parametrize("tracked", [False, True], ids=["plain", "conntrack"])
@pytest.mark.parametrize(
    ("function", "ping", "filter_"),
    [
        ("ip_output", "ping -4 -c3 -i0.2 -W1 10.9.0.2", "icmp[icmptype] == icmp-echoreply"),
        ("ip6_output", "ping -6 -c3 -i0.2 -W1 fd99::2", "ip6 and icmp6 and ip6[40] == 129"),
    ],
)
def test_packets_go_with_their_namespace(kasan: Lab, function: str, ping: str, filter_: str, *, tracked: bool) -> None:
    shell(kasan, NAMESPACE + (CONNTRACK if tracked else ""))
    with kasan.hold(function, filter_) as held:
        kasan.guest.run(["sh", "-c", ping], timeout_s=30)
        packets = held.take(3)
        shell(kasan, "ip netns del z")
        for packet in packets:
            assert packet.wait(10), packet
            assert (packet.state, packet.cause) == (State.DROPPED, Cause.NAMESPACE_GOES)
        assert (held.counts.given_up, held.counts.dropped) == (3, 3)
        # It is gone, its devices too: nothing waits for anybody.
        shell(
            kasan, "while ip link show v0 2>/dev/null; do sleep 0.05; done; ! ip netns list | grep -q z", timeout_s=20
        )
    assert "held packets were dropped" in kasan.console.text()
    if tracked:
        shell(kasan, "nft delete table inet t")


@pytest.mark.wall_clock
def test_packets_go_with_their_device(kasan: Lab) -> None:
    shell(kasan, NAMESPACE)
    with kasan.hold("ip_rcv", "icmp[icmptype] == icmp-echo") as held:
        kasan.guest.run(["ip", "netns", "exec", "z", "ping", "-c2", "-i0.2", "-W1", "10.9.0.1"], timeout_s=30)
        packets = held.take(2)
        began_s = time.monotonic()
        shell(kasan, "ip link del v0")
        assert time.monotonic() - began_s < 5  # net/core/dev.c would wait 10 s for the first word about it
        assert [(packet.wait(5), packet.cause) for packet in packets] == [(True, Cause.DEVICE_GOES)] * 2
    shell(kasan, "ip netns del z")


def test_held_answers_do_not_silence_the_kernel(lab: Lab) -> None:
    """Echo replies are sent by one socket of the kernel's, whose send buffer is small."""
    client = lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
    with lab.hold("ip_output", "icmp") as held:
        for sequence in range(600):
            client.sendto(echo_request(7, sequence), (GUEST, 0))
            if sequence % 50 == 49:
                held.take(50)
        assert held.counts.held == 600
    client.close()


@pytest.mark.parametrize("series", SERIES)
def test_memory_for_held_packets_is_bounded(series: str) -> None:
    with Lab(series=series, memory_mib=64) as lab:
        client = lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        with lab.hold("ip_rcv", "icmp") as held:
            for sequence in range(100_000):
                client.sendto(echo_request(7, sequence & 0xFFFF, bytes(8)), (GUEST, 0))
                if sequence % 32 == 31:
                    with contextlib.suppress(Timeout):
                        held.take(32, timeout_s=1)
                    if held.counts.no_memory:
                        break
            assert held.counts.caveats
        # Ping's socket would be full with what the guest answers now to the others: it hears every echo reply.
        with lab.socket(socket.AF_INET, socket.SOCK_STREAM) as other, pytest.raises(ConnectionRefusedError):
            other.connect((GUEST, 9))
        assert lab.agent.channel.held == 0
        client.close()


@pytest.mark.wall_clock
def test_a_lease_gives_back_what_nobody_decides_on(lab: Lab) -> None:
    with Lab(lease_s=0.3) as leased, leased.hold("icmp_rcv") as held:
        done = leased.run(["ping", "-c1", "-W5", "guest"])
        (packet,) = held.take(1)
        assert done.returncode == 0
        assert 300 <= float(done.stdout.partition("time=")[2].split()[0]) < 400
        assert packet.wait(5)
        assert (packet.state, packet.cause, held.counts.expired) == (State.RELEASED, Cause.LEASE, 1)
        assert "nobody decided on a held packet in time" in leased.console.text()
    with lab.hold("icmp_rcv") as held:  # a minute is far away
        assert lab.run(["ping", "-c1", "-W1", "guest"]).returncode == 1
        assert held.counts.expired == 0


def test_numbers_that_make_no_sense_are_refused(lab: Lab) -> None:
    with lab.hold("icmp_rcv") as held:
        client = lab.popen(["ping", "-c1", "-W5", "guest"], stdout=subprocess.DEVNULL)
        (packet,) = held.take(1)
        for after_s in (-1.0, float("nan"), float("inf"), 1e12):
            with pytest.raises(UsageError):
                packet.release(after_s=after_s)
        for copies in (-1, 0, 1001, 1 << 40):
            with pytest.raises(UsageError):
                packet.duplicate(copies)
        packet.duplicate(1000)
        packet.release()
        assert client.wait(10) == 0
    assert (held.counts.duplicated, held.counts.released) == (1000, 1001)
    with pytest.raises(UsageError, match="no such time: lease_s=-1"):
        Lab(lease_s=-1)


@pytest.mark.parametrize("address", [0, 0xFFF, 0x0000DEADBEEF0000, 0xFFFFFFFFFFFFFFFE])
def test_an_address_that_is_none_is_refused(shared_lab: Lab, address: int) -> None:
    with pytest.raises(SkblabError, match=r"the agent (refused|cannot do that): arming nowhere"):
        shared_lab.agent.rules.arm_as(Rule("nowhere", "accept"), abi.Arm(address, VERDICTS["accept"].number))
    assert shared_lab.run(["ping", "-c1", "-W5", "guest"]).returncode == 0


def test_another_filter_goes_on_counting(lab: Lab) -> None:
    with lab.hold("icmp_rcv", "icmp", occurrence=Occurrence(1, 1)) as held:
        lab.run(["ping", "-c1", "-W0.2", "guest"])
        held.refilter("icmp[icmptype] == icmp-echo")
        assert lab.run(["ping", "-c2", "-i0.1", "-W1", "guest"]).returncode == 0
        assert (held.counts.held, held.counts.arrived) == (1, 3)
