"""Python's model of a held packet's life, held against the agent's, by whatever order of steps hypothesis thinks of."""

import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from skblab.agent.packets import LIFE, HeldPacket, State
from skblab.errors import PacketGone
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.packet import echo_request
from skblab.rule import Rule

if TYPE_CHECKING:
    from skblab.agent.streams import Hold

GUEST = ("192.168.10.1", 0)


class Life(RuleBasedStateMachine):
    """One machine has one hold in one lab, which all machines share."""

    lab: Lab
    held = Bundle("held")
    gone = Bundle("gone")

    def __init__(self) -> None:
        super().__init__()
        self.client = self.lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self.client.settimeout(5)
        self.hold: Hold = self.lab.hold("icmp_rcv", "icmp[icmptype] == icmp-echo")
        self.sent = self.waiting = self.released = self.dropped = self.copied = self.heard = 0

    @rule(target=held)
    def arrive(self) -> HeldPacket:
        self.sent += 1
        self.client.sendto(echo_request(7, self.sent), GUEST)
        self.waiting += 1
        (packet,) = self.hold.take(1, timeout_s=5)
        return packet

    @rule(target=gone, packet=consumes(held))
    def release(self, packet: HeldPacket) -> HeldPacket:
        packet.release()
        assert packet.wait(5)
        assert packet.state is State.RELEASED
        self.waiting -= 1
        self.released += 1
        self.hear(1)
        return packet

    @rule(target=gone, packet=consumes(held))
    def drop(self, packet: HeldPacket) -> HeldPacket:
        packet.drop()
        assert packet.wait(5)
        assert packet.state is State.DROPPED
        self.waiting -= 1
        self.dropped += 1
        return packet

    @rule(packet=held, copies=st.integers(1, 4))
    def duplicate(self, packet: HeldPacket, copies: int) -> None:
        packet.duplicate(copies)
        self.copied += copies
        self.released += copies
        self.hear(copies)

    @rule(packet=held, size=st.integers(0, 1400))
    def edit(self, packet: HeldPacket, size: int) -> None:
        packet.edit(lambda _: bytes(size))

    @rule(packet=gone)
    def decide_again(self, packet: HeldPacket) -> None:
        for decide in (packet.release, packet.drop, packet.duplicate):
            with pytest.raises(PacketGone):
                decide()
        assert LIFE[packet.state] == frozenset()

    @invariant()
    def the_agent_agrees(self) -> None:
        counts = self.hold.counts
        assert self.lab.agent.channel.held == self.waiting
        assert (counts.arrived, counts.passed, counts.held) == (self.sent, 0, self.sent)
        assert (counts.released, counts.dropped, counts.duplicated) == (self.released, self.dropped, self.copied)

    def hear(self, answers: int) -> None:
        for _ in range(answers):
            assert self.client.recv(65536)[20] == 0
            self.heard += 1

    def teardown(self) -> None:
        self.hold.close()
        self.hear(self.waiting)
        assert self.heard == self.sent + self.copied - self.dropped
        assert self.lab.agent.channel.held == 0
        self.client.close()


@pytest.fixture(scope="module", autouse=True)
def lab() -> Iterator[None]:
    with Lab(image=find_image(), memory_mib=128) as lab:
        Life.lab = lab
        yield


TestLife = Life.TestCase
TestLife.settings = settings(
    max_examples=40, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)


def test_the_measured_function_is_there_at_once(image: Image) -> None:
    with Lab(image=image) as lab, lab.agent.arm_measured(Rule("measured", "accept")) as armed:
        assert lab.agent.measure_ns(bytes(64), 1000) > 0
        assert armed.counts.passed == 1000
