"""The verdict "stop": the agent filters at kernel speed, gdb stops on a match only, and reads the stop as an entry."""

import subprocess
from collections.abc import Iterator

import pytest

from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import Packet


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
