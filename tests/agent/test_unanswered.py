"""What the agent has not answered is neither forgotten nor taken for done."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from skblab.agent import link
from skblab.errors import AgentDamaged, Timeout
from skblab.lab import Lab
from skblab.rule import Rule


@contextmanager
def stopped(lab: Lab) -> Iterator[None]:
    """Stop a guest's process, with nobody who waits long for its answers."""
    os.kill(lab.guest.pid, signal.SIGSTOP)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(link, "ANSWER_TIMEOUT_S", 0.5)
            yield
    finally:
        os.kill(lab.guest.pid, signal.SIGCONT)


def test_a_rule_that_was_not_taken_away_keeps_its_number(shared_lab: Lab) -> None:
    agent = shared_lab.agent
    agent.wait_ready()
    armed = agent.rules.arm(Rule.parse("icmp_rcv = trace"))
    with stopped(shared_lab), pytest.raises(Timeout):
        armed.disarm()
    assert armed.number not in agent.rules._free
    armed.disarm()
    assert armed.number in agent.rules._free
    assert agent.channel.probes == 0
    assert (agent.link._answers, agent.link._asked) == ({}, set())  # the answer that came too late, too


def test_a_rule_that_may_come_into_force_yet_is_taken_away(shared_lab: Lab) -> None:
    agent = shared_lab.agent
    agent.wait_ready()
    free = len(agent.rules._free)
    with stopped(shared_lab), pytest.raises(Timeout):
        agent.rules.arm(Rule.parse("icmp_rcv = drop"))
    assert len(agent.rules._free) == free - 1
    assert shared_lab.run(["ping", "-c", "1", "-W", "5", "guest"]).returncode == 0
    with agent.rules.arm(Rule.parse("ip_rcv = trace")):
        assert agent.channel.probes == 1


def test_a_ring_that_the_guest_has_damaged_ends_the_conversation(lab: Lab) -> None:
    agent = lab.agent
    agent.wait_ready()
    tail = agent.channel._read("events_tail")
    agent.channel._write("events_tail", tail + 4)
    with pytest.raises(AgentDamaged) as caught:
        agent.rules.arm(Rule.parse("icmp_rcv = trace"))
    assert "in the ring of events" in caught.value.found
