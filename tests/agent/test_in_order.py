"""A packet that a rule changes keeps its place: what its function gets meanwhile goes on behind it.

In real time a change takes Python some time, in which a burst brings dozens of segments.
"""

import hashlib
import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from skblab.agent.packets import HeldPacket, State
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.packet import echo_request
from skblab.rule import Rule
from support import counters, eventually

if TYPE_CHECKING:
    from skblab.agent.rules import Armed
    from skblab.event import Hit

GUEST = "192.168.10.1"
ADDRESSES = {"tcp_v4_rcv": GUEST, "tcp_v6_rcv": "fd00:10::1", "ip_rcv": GUEST, "ipv6_rcv": "fd00:10::1"}
SENT = bytes(range(256)) * 16_384
SEGMENT = "tcp dst port 9000 and len > 500"  # of the upload
SINK = """
import hashlib, socket
server = socket.create_server(("::", 9000), family=socket.AF_INET6, dualstack_ipv6=True)
while True:
    client, _ = server.accept()
    got = hashlib.sha256()
    try:
        while some := client.recv(1 << 20):
            got.update(some)
        client.sendall(got.hexdigest().encode())
    except OSError:
        pass
    client.close()
"""


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    program = tmp_path_factory.mktemp("sink") / "sink.py"
    program.write_text(SINK)
    with Lab(root="host", memory_mib=256) as lab:
        lab.serve(f"python3 {program}")
        yield lab


def upload(lab: Lab, address: str) -> str:
    """Send the guest bytes; return the digest of what it says to have got."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with lab.socket(family, socket.SOCK_STREAM) as client:
        client.settimeout(30)
        client.connect((address, 9000))
        client.sendall(SENT)
        client.shutdown(socket.SHUT_WR)
        return client.recv(100).decode()


@pytest.mark.wall_clock  # a sender that waits for long sends again
@pytest.mark.parametrize("function", ["tcp_v4_rcv", "ipv6_rcv"])
def test_a_burst_does_not_overtake_an_edit(sink: Lab, function: str) -> None:
    before = counters(sink.guest)
    with sink.rule(f"{function} = edit tcp.urgptr=7 @20 if {SEGMENT}") as rule:
        assert upload(sink, ADDRESSES[function]) == hashlib.sha256(SENT).hexdigest()
    after = counters(sink.guest)
    assert (rule.fired, rule.unedited, rule.counts.held) == (True, 0, 1)
    assert rule.counts.waited > 0
    assert rule.counts.passed == rule.counts.arrived - 1
    for name in ("TcpExtTCPOFOQueue", "TcpExtTCPDSACKOldSent", "TcpInCsumErrors"):
        assert after[name] == before[name], name


@pytest.mark.parametrize("function", ["ip_rcv", "tcp_v6_rcv"])
def test_other_bytes_in_a_burst_are_those_that_arrive(sink: Lab, function: str) -> None:
    """The filter takes the first segment only, and the small ones behind it wait all the same."""
    address = ADDRESSES[function]
    edit = f'{function} = edit raw.load="{"x" * 1000}" if {SEGMENT}'
    with (
        sink.rule(edit) as rule,
        sink.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.settimeout(30)
        client.connect((address, 9000))
        client.sendall(bytes(1000))
        for _ in range(50):
            client.sendall(b"later")
        client.shutdown(socket.SHUT_WR)
        got = client.recv(100).decode()
    assert got == hashlib.sha256(b"x" * 1000 + b"later" * 50).hexdigest()
    assert (rule.fired, rule.counts.arrived, rule.counts.waited > 0) == (True, 1, True)


@pytest.mark.parametrize("function", ["tcp_v4_rcv", "tcp_v6_rcv"])
def test_a_reset_in_a_burst_ends_the_connection(sink: Lab, function: str) -> None:
    before = counters(sink.guest)
    with sink.rule(f"{function} = reset @20 if {SEGMENT}") as rule, pytest.raises(ConnectionResetError):
        upload(sink, ADDRESSES[function])
    assert rule.fired
    assert counters(sink.guest)["TcpEstabResets"] == before["TcpEstabResets"] + 1


def test_corrupt_in_a_burst_costs_one_segment(sink: Lab) -> None:
    before = counters(sink.guest)
    with sink.rule(f"tcp_v4_rcv = corrupt 2 @20 if {SEGMENT}"):
        assert upload(sink, GUEST) == hashlib.sha256(SENT).hexdigest()
    assert counters(sink.guest)["TcpInCsumErrors"] == before["TcpInCsumErrors"] + 1


def test_later_rules_see_what_waits(sink: Lab) -> None:
    """A segment behind the edited one is dropped, one is traced, by rules of their own."""
    seen: list[Hit] = []
    with (
        sink.rule(f"tcp_v4_rcv = edit tcp.urgptr=7 @20 if {SEGMENT}") as edit,
        sink.rule(f"tcp_v4_rcv = drop @2 if {SEGMENT}") as drop,
        sink.rule(f"tcp_v4_rcv = trace @1-5 if {SEGMENT}", seen.append),
    ):
        assert upload(sink, GUEST) == hashlib.sha256(SENT).hexdigest()
    assert (edit.fired, edit.counts.waited > 0, drop.counts.dropped) == (True, True, 1)
    assert [hit.occurrence for hit in seen] == [1, 2, 3, 4, 5]


class First:
    """A rule that holds the first ping in order, until the test decides; the next ones wait behind it."""

    def __init__(self, lab: Lab, *, lease_s: float = 60.0, function: str = "icmp_rcv") -> None:
        self._lab = lab
        self._heard = threading.Event()
        rule = Rule.parse(f"{function} = hold @1 if icmp[icmptype] == icmp-echo")
        self.armed: Armed = lab.agent.rules.arm(rule, self._hear, lease_s=lease_s, in_order=True)
        self.client = lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.client.settimeout(5)
        for sequence in range(1, 5):
            self.client.sendto(echo_request(77, sequence), (GUEST, 0))
        assert self._heard.wait(10)
        assert eventually(lambda: self.armed.counts.arrived == 4)

    def _hear(self, _: object, held: HeldPacket | None) -> None:
        assert held
        self.held = held
        self._heard.set()

    def answers(self, count: int) -> list[int]:
        """Return the sequence numbers of answers, in the order of arrival."""
        return [int.from_bytes(self.client.recv(2048)[26:28], "big") for _ in range(count)]

    def is_silent(self) -> bool:
        """Whether no answer is there."""
        self.client.settimeout(0.05)
        try:
            self.client.recv(2048)
        except TimeoutError:
            self.client.settimeout(5)
            return True
        return False


@pytest.fixture(scope="module", params=["default", "kasan"])
def every(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(image=find_image(variant=request.param), root="host", memory_mib=512, boot_timeout_s=60) as lab:
        yield lab


def test_all_go_on_in_order_when_the_first_does(every: Lab) -> None:
    first = First(every)
    with first.armed as armed, first.client:
        assert first.is_silent()
        assert (armed.counts.held, armed.counts.passed, armed.counts.waited) == (1, 3, 3)
        first.held.release()
        assert first.answers(4) == [1, 2, 3, 4]
        first.client.sendto(echo_request(77, 5), (GUEST, 0))
        assert first.answers(1) == [5]
        assert (armed.counts.passed, armed.counts.waited, armed.counts.released) == (4, 3, 1)


def test_all_go_on_when_the_first_is_dropped(every: Lab) -> None:
    first = First(every)
    with first.armed, first.client:
        first.held.drop()
        assert first.answers(3) == [2, 3, 4]


def test_a_copy_goes_first(every: Lab) -> None:
    first = First(every)
    with first.armed, first.client:
        first.held.duplicate()
        assert first.answers(1) == [1]
        assert first.is_silent()
        first.held.release(after_s=0.05)
        assert first.answers(4) == [1, 2, 3, 4]


def test_all_go_on_when_the_rule_ends(every: Lab) -> None:
    first = First(every)
    with first.client:
        first.armed.disarm()
        assert first.answers(4) == [1, 2, 3, 4]
        assert first.held.wait(5)
        counts = first.armed.counts
        assert (counts.held, counts.released, counts.passed, counts.waited, counts.dropped) == (1, 1, 3, 3, 0)


@pytest.mark.complains("agent")
def test_all_go_on_when_the_lease_ends(every: Lab) -> None:
    first = First(every, lease_s=0.5)
    with first.armed as armed, first.client:
        assert first.answers(4) == [1, 2, 3, 4]
        assert armed.counts.expired == 1


def test_all_go_with_their_device(every: Lab) -> None:
    """The first one, and those behind it."""
    every.guest.run(["sh", "-ec", "ip netns add z; ip link add v0 type veth peer name v1 netns z"])
    every.guest.run(["sh", "-ec", "ip addr add 10.9.0.1/24 dev v0; ip link set v0 up"])
    every.guest.run(["sh", "-ec", "ip -n z addr add 10.9.0.2/24 dev v1; ip -n z link set v1 up"])
    held: list[HeldPacket | None] = []
    rule = Rule.parse("ip_rcv = hold @1 if icmp[icmptype] == icmp-echo")
    with every.agent.rules.arm(rule, lambda _, one: held.append(one), lease_s=60, in_order=True) as armed:
        every.guest.run(["ip", "netns", "exec", "z", "ping", "-c4", "-i0.1", "-W1", "10.9.0.1"], timeout_s=30)
        assert (armed.counts.held, armed.counts.waited) == (1, 3)
        every.guest.run(["sh", "-ec", "ip link del v0; ip netns del z"])
        (first,) = held
        assert first
        assert first.wait(10)
        counts = armed.counts
        assert (first.state, counts.given_up, counts.dropped) == (State.DROPPED, 4, 1)
        assert (counts.arrived, counts.held, counts.passed, counts.waited) == (4, 1, 3, 3)


def test_nothing_waits_for_a_packet_that_has_gone(every: Lab) -> None:
    """After each end, the rule's next packets go on at once."""
    for _ in range(20):
        first = First(every)
        with first.armed as armed, first.client:
            first.held.release()
            assert first.answers(4) == [1, 2, 3, 4]
            waited = armed.counts.waited
            first.client.sendto(echo_request(77, 9), (GUEST, 0))
            assert first.answers(1) == [9]
            assert armed.counts.waited == waited
