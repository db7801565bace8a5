"""Hypothesis makes faults, and finds the fewest that make a client fail."""

from contextlib import ExitStack

import pytest
from hypothesis import find, given, settings

from skblab.lab import Lab
from skblab.rule import Rule
from skblab.strategies import faults, rules

FUNCTIONS = ("ip_rcv", "icmp_rcv")


@given(faults(FUNCTIONS, verdicts=("drop", "delay", "edit ip.ttl=3"), most=4, filter="icmp", at_once=2))
@settings(database=None, max_examples=50)
def test_each_is_a_rule_that_can_be_written(made: list[Rule]) -> None:
    assert len(made) <= 2
    assert [Rule.parse(str(rule)) for rule in made] == made
    for rule in made:
        assert rule.function in FUNCTIONS
        assert rule.filter == "icmp"
        assert 1 <= rule.occurrence.first == rule.occurrence.last <= 4


@pytest.mark.slow
def test_the_fewest_faults_that_lose_a_ping_are_one(shared_lab: Lab) -> None:
    def loses(made: list[Rule]) -> bool:
        with ExitStack() as stack:
            for rule in made:
                stack.enter_context(shared_lab.rule(rule))
            done = shared_lab.run(["ping", "-n", "-q", "-c1", "-W0.3", "guest"], timeout_s=20)
        return done.returncode != 0

    found = find(faults(["icmp_rcv"], verdicts=("drop", "duplicate"), most=3), loses,
                 settings=settings(database=None, max_examples=60))  # fmt: skip
    assert [str(rule) for rule in found] == ["icmp_rcv = drop @1"]


def test_single_rules() -> None:
    found = find(rules(["icmp_rcv"]), lambda rule: rule.verdict == "delay", settings=settings(database=None))
    assert str(found) == "icmp_rcv = delay 1ms @1"
