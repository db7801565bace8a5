"""The verdict "stop": the agent filters at kernel speed, gdb stops on a match only, and reads the stop as an entry."""

import subprocess
from collections.abc import Iterator

import pytest

from skblab import session
from skblab.errors import DebuggerError, RuleError, UsageError
from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.session import Session
from skblab.spec import LabSpec
from skblab.sweep.cell import Scenario
from skblab.sweep.sweep import Sweep


@pytest.fixture
def every_lab(every_image: Image) -> Iterator[Lab]:
    with Lab(image=every_image) as lab:
        yield lab


def test_the_kernel_stops_at_the_third_ping_only(every_lab: Lab) -> None:
    lab = every_lab
    rule = lab.rule("icmp_rcv = stop @3 if icmp[icmptype] == icmp-echo")
    with lab.debugger() as gdb:
        lab.stop_on_rules(gdb)
        gdb.resume()
        client = lab.popen(["ping", "-n", "-c", "3", "-i", "0.05", "192.168.10.1"], stdout=subprocess.PIPE)
        stopped = gdb.wait_stop(20)
        names = [frame.function for frame in stopped.frames]
        assert names[:2] == ["icmp_rcv", "ip_protocol_deliver_rcu"]
        assert names[-1] == "new_thread_handler"
        assert [argument.name for argument in stopped.frames[0].arguments] == ["skb"]
        assert stopped.packet is not None
        assert int(gdb.evaluate("skb->len")) == stopped.packet.len == 64
        gdb.resume()
        packet = Packet(bytes.fromhex(stopped.packet.linear), stopped.packet.protocol)
        assert packet.echo is not None
        assert packet.echo[2] == 3
        assert [reply.icmp_seq for reply in parse_ping(process.finish(client, timeout_s=20).stdout)][:2] == [1, 2]
    rule.close()
    assert rule.armed.counts.stopped == 1
    assert lab.run(["ping", "-c", "1", "-W", "5", "guest"], timeout_s=20).returncode == 0


def test_without_gdb_a_stop_stops_nothing(every_lab: Lab) -> None:
    rule = every_lab.rule("icmp_rcv = stop")
    assert every_lab.run(["ping", "-c", "1", "-W", "5", "guest"], timeout_s=20).returncode == 0
    assert rule.armed.counts.stopped == 1


def test_a_stop_outlives_programs_of_the_guest() -> None:
    """Each begins as a copy of the kernel's process, of which gdb takes its breakpoints out."""
    with Lab(root="host") as lab, lab.rule("icmp_rcv = stop @1") as rule, lab.debugger() as gdb:
        lab.stop_on_rules(gdb)
        gdb.resume()
        assert lab.guest.run(["true"]).returncode == 0
        ping = lab.popen(["ping", "-q", "-c", "1", "guest"], stdout=subprocess.DEVNULL)
        stopped = gdb.wait_stop(20)
        assert stopped.frames[0].function == "icmp_rcv"
        gdb.resume()
        assert process.finish(ping, timeout_s=20).returncode == 0
        assert rule.counts.stopped == 1


def test_a_stop_that_gdb_does_not_report_is_an_error(shared_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LAST_STOP_S", 0.5)
    monkeypatch.setattr(Session, "_stops", 1)
    with (
        pytest.raises(DebuggerError, match="gdb has not reported a stop within"),
        Session(shared_lab, ["icmp_rcv = stop"]) as one,
    ):
        one.run(["true"], timeout_s=20)


def test_in_virtual_time_no_rule_stops_the_kernel() -> None:
    with (
        LabSpec(time="virtual").start() as lab,
        pytest.raises(UsageError, match="gdb stops a kernel in real time"),
        Session(lab, ["icmp_rcv = trace", "icmp_rcv = stop @1"]),
    ):
        pass
    with pytest.raises(RuleError, match="gdb stops a kernel in real time: stop"):
        Sweep(Scenario(spec=LabSpec(time="virtual"), client=("true",)), verdicts=("drop", "stop"))
