"""A stream has every packet that has passed, however far behind the thread is that reads the agent's events."""

import threading
from typing import Literal

import pytest

from skblab.errors import EventsLost, Timeout
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.session import Session
from skblab.spec import LabSpec

GUEST = "192.168.10.1"


def ping(lab: Lab) -> None:
    assert lab.run(["ping", "-n", "-c", "1", "-W", "5", GUEST], timeout_s=20).returncode == 0


def test_what_has_passed_is_there(shared_lab: Lab) -> None:
    for _ in range(200):
        with shared_lab.probe("icmp_rcv", "icmp") as probe:
            ping(shared_lab)
            assert len(probe.take_all()) == 1


def test_it_is_though_the_reading_thread_is_busy(shared_lab: Lab) -> None:
    def is_slow(*_: object) -> None:
        threading.Event().wait(0.3)

    before = shared_lab.agent.rules.arm(Rule("ip_rcv", "trace", filter="icmp"), is_slow)
    with shared_lab.probe("icmp_rcv", "icmp") as probe:
        ping(shared_lab)
        assert len(probe.take_all()) == 1
    before.disarm()


def test_in_a_callback_nobody_waits(shared_lab: Lab) -> None:
    """It is the reading thread's: what came before was handed on, what comes behind it was not."""
    seen: list[int] = []
    with shared_lab.probe("ip_rcv", "icmp") as probe:
        after = shared_lab.agent.rules.arm(
            Rule("icmp_rcv", "trace", filter="icmp"), lambda *_: seen.append(len(probe.take_all()))
        )
        ping(shared_lab)
        after.disarm()
    assert seen == [1]


def test_packets_that_the_ring_has_no_room_for_are_missed(image: Image) -> None:
    """70,000 at one moment of virtual time, and each takes 256 of the ring's 16 MiB."""
    flood = "import socket; s = socket.socket(2, 2)\nfor _ in range(70000): s.sendto(bytes(99), ('192.168.10.1', 9))"
    with LabSpec(image=image, time="virtual").start() as lab:
        hits: list[int] = []
        with (
            lab.probe("udp_rcv") as probe,
            lab.rule("ip_rcv = trace if udp", lambda hit: hits.append(hit.occurrence)) as rule,
            lab.rule("ip_local_deliver = trace if udp") as alone,
        ):
            assert probe.take_all() == []
            with Session(lab, ["icmp_rcv = trace @1"]) as session:
                assert session.run(["python3", "-c", flood]).events_lost > 0
            assert (rule.counts.traced, rule.unheard) == (70000, 70000 - len(hits))
            assert alone.unheard == 0
            with pytest.raises(Timeout, match="the ring of events was full for"):
                rule.wait(70000, timeout_s=0.1)
            with pytest.raises(EventsLost, match="of 70000 packets at udp_rcv"):
                probe.take_all()
            assert len(probe.take(100)) == 100
        with Session(lab, ["ip_rcv = trace"]) as session:
            assert session.run(["ping", "-n", "-c1", GUEST]).events_lost == 0


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_counts_outlive_the_lab(image: Image, time: Literal["real", "virtual"]) -> None:
    with LabSpec(image=image, time=time, root="host").start() as lab:
        probe, rule, hold = (
            lab.probe("icmp_rcv", "icmp[icmptype] == icmp-echo"),
            lab.rule("ip_rcv = trace"),
            lab.hold("udp_rcv"),
        )
        ping(lab)
    assert (probe.counts.traced, probe.fired, hold.counts.held) == (1, True, 0)
    for one in (probe, rule, hold):
        one.close()
    assert (probe.counts.traced, rule.counts.traced > 0) == (1, True)
