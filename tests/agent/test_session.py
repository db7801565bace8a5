"""A run from Python, with what ``skblab run`` knows: rules, counts, complaints, outcome."""

import signal
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from skblab import LabSpec, Session, Watcher
from skblab.errors import CallbackFailed, GuestLost, RuleError, UsageError
from skblab.event import Hit, Stop
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import Time


@pytest.fixture(scope="module")
def lab(image: Image) -> Iterator[Lab]:
    with LabSpec(image=image).start() as lab:
        yield lab


class Everything(Watcher):
    def __init__(self) -> None:
        self.hits: list[Hit] = []
        self.stops: list[Stop] = []
        self.stopped_s: list[float] = []

    def hit(self, hit: Hit) -> None:
        self.hits.append(hit)

    def stopped(self, stop: Stop) -> None:
        self.stops.append(stop)

    def resumed(self, stopped_s: float) -> None:
        self.stopped_s.append(stopped_s)


def test_what_came_of_a_run(lab: Lab) -> None:
    watcher, began_ns = Everything(), time.monotonic_ns()
    with Session(lab, ["icmp_rcv = delay 50ms @2", "ip_output = drop @3 if icmp"], watcher) as session:
        outcome = session.run(["ping", "-c3", "-i0.1", "-W1", "guest"], capture=True)
    assert (outcome.status, outcome.exit_status) == (0, 0)
    assert "3 packets transmitted, 2 received" in outcome.output[0]
    assert outcome.output[1] == ""
    assert [(one.rule.verdict, one.counts.arrived) for one in outcome.rules] == [("delay", 3), ("drop", 3)]
    assert (outcome.rules[0].counts.released, outcome.rules[1].counts.dropped) == (1, 1)
    assert (outcome.complaints, bool(outcome.link), outcome.events_lost) == ((), False, 0)
    assert [(one.function, one.occurrence) for one in watcher.hits] == [("icmp_rcv", 2), ("ip_output", 3)]
    assert began_ns < watcher.hits[0].at_ns < watcher.hits[1].at_ns < time.monotonic_ns()
    assert "ICMP echo request" in watcher.hits[0].packet.summary()
    assert 0 < outcome.duration_s < 60
    assert lab.agent.channel.probes == 0  # the rules have gone with the run


def test_an_edit_that_fails(lab: Lab) -> None:
    with Session(lab, ["ip_rcv = edit udp.dport=9 @1"]) as session:
        outcome = session.run(["ping", "-c1", "guest"])
    assert (outcome.status, outcome.exit_status) == (0, 1)
    assert (outcome.rules[0].unedited, "udp" in outcome.rules[0].why_unedited) == (1, True)


def test_a_stop(lab: Lab) -> None:
    watcher = Everything()
    with Session(lab, ["icmp_rcv = stop @1"], watcher) as session:
        assert session.run(["ping", "-c1", "-W10", "guest"]).status == 0
    (stop,) = watcher.stops
    assert stop.packet
    assert stop.frames[0][:2] == ("icmp_rcv", "net/ipv4/icmp.c")
    assert watcher.stopped_s[0] > 0


def test_a_run_in_another_thread(lab: Lab) -> None:
    statuses: list[int] = []

    def run() -> None:
        with Session(lab, ["icmp_rcv = trace"]) as session:
            statuses.append(session.run(["ping", "-c1", "guest"]).status)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert statuses == [0]


def test_how_a_command_ends(lab: Lab) -> None:
    with Session(lab) as session:
        assert session.run(["sh", "-c", "kill -TERM $$"]).status == 128 + signal.SIGTERM
    with Session(lab) as session:
        assert session.run(["sh", "-c", "exit 3"]).status == 3
    with Session(lab) as session, pytest.raises(subprocess.TimeoutExpired):
        session.run(["sleep", "1000"], timeout_s=0.1)


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_a_session_runs_one_command(image: Image, time: Time) -> None:
    """Its rules are not in force any more; and the lab stays as it was."""
    with LabSpec(image=image, time=time).start() as lab:
        session = Session(lab, ["icmp_rcv = drop @1"])
        with pytest.raises(UsageError, match="not in force"):
            session.run(["true"])
        with session:
            assert session.run(["ping", "-c1", "-W1", "guest"]).status == 1
            with pytest.raises(UsageError, match="it runs one command"):
                session.run(["ping", "-c1", "-W1", "guest"])
        with pytest.raises(UsageError, match="entered once"), session:
            pass
        assert lab.run(["ping", "-c1", "guest"]).returncode == 0


def test_what_is_wrong_is_raised(lab: Lab) -> None:
    with pytest.raises(RuleError):
        Session(lab, ["icmp_rcv = dorp"])

    class Failing(Watcher):
        def hit(self, hit: Hit) -> None:
            raise ValueError(hit.function)

    with Session(lab, ["icmp_rcv = trace"], Failing()) as session, pytest.raises(CallbackFailed, match="icmp_rcv"):
        session.run(["ping", "-c1", "guest"])
    assert lab.agent.channel.probes == 0


@pytest.mark.complains("panic")
def test_a_guest_that_panics(image: Image) -> None:
    with LabSpec(image=image, root="host").start() as lab, Session(lab) as session:
        command = lab.guest.popen(["sh", "-c", "read go; echo c >/proc/sysrq-trigger"], stdin=subprocess.PIPE)
        assert command.stdin
        command.stdin.close()
        with command, pytest.raises(GuestLost, match="panic"):
            session.run(["sleep", "1000"])
