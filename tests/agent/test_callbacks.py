"""A callback of the caller's may fail, or ask for what it cannot have: the lab goes on, and the caller hears of it."""

import subprocess
import threading

import pytest

from skblab import event
from skblab.agent import link
from skblab.agent.abi import Hit
from skblab.agent.packets import HeldPacket
from skblab.agent.rules import Armed
from skblab.agent.running import Running
from skblab.errors import CallbackFailed, SkblabError, UsageError
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.spec import Time


def pinged(lab: Lab) -> bool:
    return lab.run(["ping", "-c1", "-W1", "guest"], timeout_s=20).returncode == 0


def fail(hit: event.Hit) -> None:
    raise ValueError(f"no policy for {hit.packet.summary().split(':')[0]}, {hit.verdict}: {hit.function}")


@pytest.mark.parametrize("verdict", ["trace", "drop @2", "hold 1 release fifo", "edit ip.ttl=9", "delay 1ms"])
def test_an_error_is_raised_where_the_rule_is_closed(shared_lab: Lab, verdict: str) -> None:
    rule = shared_lab.rule(f"icmp_rcv = {verdict}", fail)
    assert pinged(shared_lab)  # what was to be done with the packet was done all the same
    assert pinged(shared_lab) is not verdict.startswith("drop")
    with pytest.raises(CallbackFailed, match=r"icmp_rcv = .* raised ValueError: no policy for") as error:
        rule.close()
    assert isinstance(error.value.__cause__, ValueError)
    rule.close()  # it was raised once
    with shared_lab.rule("icmp_rcv = drop @1"):
        assert not pinged(shared_lab)
    assert pinged(shared_lab)


def under(lab: Lab, armed: Running | Armed) -> None:
    with armed:
        assert pinged(lab)
        raise KeyError


def test_the_callers_own_error_goes_first(shared_lab: Lab) -> None:
    with pytest.raises(KeyError):
        under(shared_lab, shared_lab.rule("icmp_rcv = trace", fail))
    with pytest.raises(KeyError):
        under(shared_lab, shared_lab.agent.rules.arm(Rule("icmp_rcv", "trace"), broken))


def broken(hit: Hit, held: HeldPacket | None) -> None:
    raise ValueError(hit, held)


def test_a_listener_that_fails_harms_no_other(shared_lab: Lab) -> None:
    heard: list[str] = []
    armed = shared_lab.agent.rules.watch("icmp_echo", broken)
    with shared_lab.rule("icmp_rcv = trace", lambda hit: heard.append(hit.packet.summary())):
        assert pinged(shared_lab)
    assert len(heard) == 1
    with pytest.raises(CallbackFailed):
        armed.disarm()


def test_the_agents_answer_behind_many_events_is_waited_for(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """A callback that prints takes longer for a flood than the agent may take for one answer."""
    monkeypatch.setattr(link, "ANSWER_TIMEOUT_S", 0.5)
    heard: list[int] = []

    def slow(hit: event.Hit) -> None:
        threading.Event().wait(0.02)
        heard.append(hit.occurrence)

    with shared_lab.rule("icmp_rcv = trace", slow) as rule:
        flood = ["ping", "-q", "-c100", "-l100", "-W1", "guest"]
        assert shared_lab.run(flood, timeout_s=20).returncode == 0
        assert len(heard) < 75  # it is 0.5 s behind, and more
    assert heard == [*range(1, rule.counts.traced + 1)]


def test_a_callback_that_waits_for_the_agent_is_refused_at_once(shared_lab: Lab) -> None:
    refused: list[UsageError] = []

    def ask(hit: Hit, held: HeldPacket | None) -> None:
        assert hit.packet
        assert held
        for wait in (
            lambda: shared_lab.rule("ip_rcv = trace"),
            lambda: shared_lab.on("ip_rcv", "", lambda _: None),
            held.duplicate,
            lambda: held.wait(10),
            lambda: hold.take(1),
        ):
            with pytest.raises(UsageError, match="cannot wait for the agent") as error:
                wait()
            refused.append(error.value)
        held.release()

    with shared_lab.hold("arp_rcv") as hold, shared_lab.agent.rules.arm(Rule("icmp_rcv", "hold"), ask):
        client = shared_lab.popen(["ping", "-c1", "-W5", "guest"], stdout=subprocess.DEVNULL)
        assert client.wait(8) == 0
    assert len(refused) == 5


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_a_callback_cannot_close_its_lab(time: Time) -> None:
    """The lab's end waits for the callback's. Nothing is ended by halves: the lab is as it was."""
    with Lab(time=time) as lab:
        rule = lab.rule("icmp_rcv = trace", lambda _: lab.close())
        assert pinged(lab)
        with pytest.raises(CallbackFailed, match="a callback cannot close its lab"):
            rule.close()
        with lab.rule("icmp_rcv = drop @1"):
            assert not pinged(lab)
        assert pinged(lab)


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_a_policy_can_close_its_lab(time: Time) -> None:
    """It decides on a thread of its own."""
    lab = Lab(time=time)
    with pytest.raises(SkblabError, match=r"was closed|is not running"), lab:  # noqa: PT012 - which of the two waits
        lab.on("icmp_rcv", "icmp", lambda _: lab.close())
        lab.run(["ping", "-c1", "-W5", "guest"])
        lab.run(["true"])
