"""A policy: a Python function decides about each packet, and no packet waits for ever because of it."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP

from skblab.agent.control import COUNT_TIMEOUT_S
from skblab.agent.packets import HeldPacket
from skblab.errors import CallbackFailed, GuestLost, UnsupportedVerdict, UsageError
from skblab.host.clients import parse_ping
from skblab.lab import Lab
from skblab.policy import LEASE_S, Policy
from skblab.rule import Occurrence


def ping(lab: Lab, *words: str) -> str:
    return lab.run(["ping", "-n", "-W", "1", *words, "guest"], timeout_s=30).stdout


def sequence(packet: HeldPacket) -> int:
    return int(packet.packet.layers[ICMP].seq)


def test_it_decides_about_each_packet(shared_lab: Lab) -> None:
    verdicts = {1: None, 2: "drop", 3: "delay 80ms", 4: "duplicate", 5: "edit icmp.seq=55", 6: "accept"}
    threads = set()

    @shared_lab.on("icmp_rcv", "icmp[icmptype] == icmp-echo")
    def decide(packet: HeldPacket) -> str | None:
        threads.add(threading.current_thread().name)
        return verdicts[sequence(packet)]

    assert not decide.fired
    said = ping(shared_lab, "-c6", "-i0.15")
    decide.close()
    replies = {reply.icmp_seq: reply.rtt_ms for reply in parse_ping(said)}
    assert replies.keys() == {1, 3, 4, 55, 6}
    assert replies[3] >= 80
    assert said.count("DUP!") == 1
    assert (decide.decided, decide.fired, decide.counts.held, decide.counts.expired) == (6, True, 6, 0)
    assert decide.counts.dropped == 1
    assert threads == {"skblab-policy"}
    decide.close()


def test_as_a_call_and_by_the_packets_own_methods(shared_lab: Lab) -> None:
    with shared_lab.on("icmp_rcv", "icmp", HeldPacket.drop, occurrence=Occurrence(2, 2)) as policy:
        assert ping(shared_lab, "-c2", "-i0.1").count("time=") == 1
    assert (policy.decided, policy.counts.dropped, policy.counts.arrived) == (1, 1, 2)


def test_one_that_decides_twice_has_failed(shared_lab: Lab) -> None:
    """What it has returned was not done."""

    def decide(packet: HeldPacket) -> str:
        packet.release()
        return "drop"

    policy = shared_lab.on("icmp_rcv", "icmp", decide)
    assert ping(shared_lab, "-c1").count("time=") == 1
    with pytest.raises(CallbackFailed, match="cannot drop this packet: it is "):
        policy.close()


@pytest.mark.parametrize(("verdict", "late"), [("drop", 1), (None, 0)])
def test_what_is_not_decided_in_time_goes_on(shared_lab: Lab, verdict: str | None, late: int) -> None:
    enough = threading.Event()
    policy = shared_lab.on("icmp_rcv", "icmp", lambda _: verdict if enough.wait(20) else "drop", lease_s=0.1)
    (reply,) = parse_ping(ping(shared_lab, "-c1"))
    assert reply.rtt_ms >= 100
    enough.set()
    policy.close()
    assert (policy.counts.expired, policy.counts.dropped) == (1, 0)
    assert (policy.decided, policy.late, policy.fired) == (0, late, False)


def test_packets_that_wait_go_on_when_it_ends(shared_lab: Lab) -> None:
    entered, enough = threading.Event(), threading.Event()

    def decide(_: HeldPacket) -> None:
        entered.set()
        enough.wait(20)

    policy = shared_lab.on("icmp_rcv", "icmp", decide, lease_s=60)
    client = shared_lab.popen(["ping", "-n", "-c1", "-W5", "guest"])
    assert entered.wait(10)

    def answered() -> None:
        client.wait(10)
        shared_lab.agent.link.catch_up()  # on a busy machine the packet's end may not have been read yet
        enough.set()

    thread = threading.Thread(target=answered)
    thread.start()
    policy.close()  # the packet goes on first: then the function returns
    thread.join()
    assert client.wait(10) == 0
    assert not policy.fired


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ("drop @2", "a policy cannot return: drop @2"),
        ("stop", "a policy cannot return: stop"),
        ("drop NO_SOCKET", "a policy cannot return"),
        ("fling", "no such verdict: fling"),
        (7, "no verdict: 7"),
    ],
)
def test_the_first_error_is_kept_and_the_packet_goes_on(shared_lab: Lab, returned: str, said: str) -> None:
    policy = shared_lab.on("icmp_rcv", "icmp", lambda _: returned)
    assert ping(shared_lab, "-c2", "-i0.1").count("time=") == 2
    with pytest.raises(CallbackFailed, match=re.escape("the policy at icmp_rcv() raised")) as caught:
        policy.close()
    assert said in str(caught.value)
    assert not policy.fired
    policy.close()


@pytest.mark.parametrize(
    ("ends", "said"),
    [
        (lambda: sys.exit(3), r"SystemExit\(3\)"),
        (lambda: pytest.fail("long"), r"Failed\(long\)"),
        (pytest.skip, "Skipped"),
    ],
)
def test_one_that_raises_no_exception_has_failed(shared_lab: Lab, ends: Callable[[], None], said: str) -> None:
    """The second packet is decided about, too."""
    policy = shared_lab.on("icmp_rcv", "icmp", lambda _: ends())
    replies = parse_ping(ping(shared_lab, "-c2", "-i0.1"))
    assert [reply.rtt_ms < LEASE_S * 1000 for reply in replies] == [True, True]
    with pytest.raises(CallbackFailed, match=said):
        policy.close()


def test_an_error_is_raised_at_the_end_of_the_lab() -> None:
    def fails(_: HeldPacket) -> str:
        raise KeyError("mine")

    lab = Lab()
    with lab:
        pid = lab.guest.pid
        lab.on("icmp_rcv", "icmp", fails)
        assert "1 received" in ping(lab, "-c1")
        with pytest.raises(CallbackFailed, match="KeyError"):
            lab.close()
    assert not Path(f"/proc/{pid}").exists()


def sleeps(thread: threading.Thread | None) -> int:
    """Return how often a thread of this process has slept."""
    assert thread
    status = Path(f"/proc/self/task/{thread.native_id}/status").read_text()
    return int(status.split("voluntary_ctxt_switches:")[1].split()[0])


def test_its_thread_is_the_only_one_that_a_packet_wakes(shared_lab: Lab) -> None:
    with shared_lab.on("icmp_rcv", "icmp", lambda _: None) as policy:
        threads = (policy._worker._thread, shared_lab.agent.link._reader)
        before = [sleeps(one) for one in threads]
        ping(shared_lab, "-c100", "-i0.01")
        its, readers = (sleeps(one) - count for one, count in zip(threads, before, strict=True))
    assert policy.decided == 100
    assert its >= 80
    assert readers <= 40  # while the policy's was still at work


def test_others_are_heard_while_it_decides(shared_lab: Lab) -> None:
    entered, enough = threading.Event(), threading.Event()

    def decide(_: HeldPacket) -> None:
        entered.set()
        enough.wait(20)

    with shared_lab.on("icmp_rcv", "icmp", decide, lease_s=60), shared_lab.rule("ip_rcv = trace if icmp") as traced:
        client = shared_lab.popen(["ping", "-n", "-c3", "-i0.1", "-W5", "guest"])
        assert entered.wait(10)
        traced.wait(3)
        with shared_lab.rule("ip_rcv = drop"):
            enough.set()
            client.wait(20)
    assert client.returncode == 0


def test_one_that_ends_beside_traffic_leaves_no_doorbell_unheard(shared_lab: Lab) -> None:
    longest_s = 0.0
    with shared_lab.rule("icmp_rcv = trace"):
        flood = shared_lab.popen(["ping", "-q", "-f", "-c", "20000", "guest"], stdout=subprocess.PIPE)
        while flood.poll() is None:
            shared_lab.on("udp_rcv", "udp", lambda _: None).close()
            began_s = time.monotonic()
            shared_lab.agent.link_losses()
            longest_s = max(longest_s, time.monotonic() - began_s)
        assert b" 0% packet loss" in flood.communicate()[0]
    assert longest_s < COUNT_TIMEOUT_S


def test_of_a_guest_that_is_gone() -> None:
    with Lab() as lab:
        policy = lab.on("icmp_rcv", "icmp", lambda _: None)
        assert "1 received" in ping(lab, "-c1")
        assert policy.decided == 1
        os.kill(lab.guest.pid, signal.SIGKILL)
        with pytest.raises(GuestLost):
            lab.hold("icmp_rcv").take(1)
        with pytest.raises(GuestLost):
            lab.on("icmp_rcv", "icmp", lambda _: None)
        policy.close()
    assert not [one.name for one in threading.enumerate() if one.name == "skblab-policy"]


def test_where_a_packet_cannot_be_held(shared_lab: Lab) -> None:
    with pytest.raises(UnsupportedVerdict):
        shared_lab.on("icmp_echo", "", lambda _: None)
    with pytest.raises(UsageError, match="no such time: lease_s=0"):
        shared_lab.on("icmp_rcv", "", lambda _: None, lease_s=0)
    assert shared_lab.agent.channel.probes == 0
    assert isinstance(shared_lab.on("icmp_rcv")(lambda _: None), Policy)
