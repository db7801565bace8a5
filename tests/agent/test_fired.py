"""A rule that never fired is seen: the run has not tested what the rule is for."""

import json
import re

import pytest

from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.session import Session
from skblab.spec import LabSpec
from support import skblab

PING = ["ping", "-n", "-c", "1", "-W", "1", "guest"]
UNFIRED = 118


@pytest.mark.parametrize(
    "verdict",
    ["accept", "trace", "hold 1", "delay 1ms", "drop", "duplicate", "edit icmp.seq=7", "hold 1 release reverse"],
)
def test_each_verdict(shared_lab: Lab, verdict: str) -> None:
    text = f"icmp_rcv = {verdict}"
    with shared_lab.rule(f"{text} @1 if icmp") as first, shared_lab.rule(f"{text} @2 if icmp") as second:
        assert not first.fired
        shared_lab.run(PING)
    assert (first.fired, first.counts.verdicts) == (True, 1)
    assert (second.fired, second.counts.verdicts) == (False, 0)


def test_a_hold_of_two_that_got_one(shared_lab: Lab) -> None:
    with shared_lab.rule("icmp_rcv = hold 2 release reverse") as rule:
        shared_lab.run(PING)
    assert rule.counts.held == 1
    assert not rule.fired


def test_a_hold_of_two_that_were_not_held_together(image: Image) -> None:
    """The first of three pings goes on by its lease before the second comes, which waits for the third."""
    with LabSpec(image=image, time="virtual", lease_s=2).start() as lab:
        with lab.rule("icmp_rcv = hold 2 release reverse @1-2 if icmp[icmptype] == icmp-echo") as apart:
            lab.run(["ping", "-n", "-c", "2", "-i", "5", "-W", "4", "guest"])
        assert (apart.counts.held, apart.counts.expired, apart.fired) == (2, 2, False)
        with lab.rule("icmp_rcv = hold 2 release reverse if icmp[icmptype] == icmp-echo") as rule:
            shell = "ping -n -c1 -W9 guest; sleep 1; ping -n -c1 -W9 guest & sleep 1; ping -n -c1 -W9 guest; wait"
            said = lab.run(["sh", "-c", shell]).stdout
        assert [round(reply.rtt_ms) for reply in parse_ping(said)] == [2000, 0, 1000]
        assert (rule.counts.expired, rule.fired) == (1, True)


def test_an_edit_that_failed(shared_lab: Lab) -> None:
    with Session(shared_lab, ["icmp_rcv = edit icmp.gw=1.2.3.4", "ip_rcv = trace @9"]) as session:
        outcome = session.run(PING)
    assert [one.fired for one in outcome.rules] == [False, False]
    assert [str(rule) for rule in outcome.unfired] == ["ip_rcv = trace @9"]
    assert outcome.exit_status == 1


def test_a_stream(shared_lab: Lab) -> None:
    with shared_lab.probe("icmp_rcv") as probe, shared_lab.hold("arp_rcv", "icmp") as hold:
        shared_lab.run(PING)
    assert (probe.fired, hold.fired) == (True, False)


@pytest.mark.parametrize("command", [("run",), ("trace", "-q")], ids=" ".join)
def test_it_is_the_exit_status(command: tuple[str, ...]) -> None:
    words = ("-r", "icmp_rcv = trace @1", "-r", "icmp_rcv = drop @2000", "--", *PING)
    done = skblab(*command, *words)
    assert done.returncode == UNFIRED
    assert done.stderr.count("never fired") == 1
    done = skblab(*command, "--allow-unfired", *words)
    assert done.returncode == 0
    assert done.stderr.count("never fired") == 1


def test_whatever_the_commands_own_status() -> None:
    assert skblab("run", "-r", "icmp_rcv = drop", "--", "sh", "-c", "exit 28").returncode == UNFIRED
    assert skblab("run", "--allow-unfired", "-r", "icmp_rcv = drop", "--", "sh", "-c", "exit 28").returncode == 28


def test_for_programs() -> None:
    done = skblab("run", "-q", "--json", "-", "-r", "ip_rcv = trace", "-r", "ip_rcv = drop if udp", "--", *PING)
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    fired = {event["rule"]: (event["fired"], event["verdicts"] > 0) for event in events if event["event"] == "rule"}
    assert fired == {"ip_rcv = trace": (True, True), "ip_rcv = drop if udp": (False, False)}
    assert (events[-1]["status"], done.returncode) == (UNFIRED, UNFIRED)
    done = skblab("trace", "--json", "-", "-r", "ip_rcv = drop if udp", "icmp", "--", *PING)
    (end,) = [one for one in map(json.loads, re.findall(r"^{.*}$", done.stdout, re.MULTILINE)) if one["type"] == "end"]
    assert (end["status"], done.returncode) == (UNFIRED, UNFIRED)
