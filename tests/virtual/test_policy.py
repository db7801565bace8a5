"""Virtual time: what Python decides takes no time."""

import re
import time

from skblab.agent.packets import HeldPacket
from skblab.image.image import Image
from skblab.spec import LabSpec


def test_a_decision_takes_no_time(every_image: Image) -> None:
    def decide(packet: HeldPacket) -> str | None:
        computes_until_s = time.monotonic() + 0.05
        while time.monotonic() < computes_until_s:
            pass
        return "delay 20ms" if packet.packet.echo and packet.packet.echo[2] == 2 else None

    with LabSpec(image=every_image, time="virtual").start() as lab:
        with lab.on("icmp_rcv", "icmp[icmptype] == icmp-echo", decide) as policy:
            said = lab.run(["ping", "-c3", "guest"]).stdout
        assert policy.decided == 3
    assert [round(float(rtt)) for rtt in re.findall(r"time=([\d.]+) ms", said)] == [0, 20, 0]


def test_an_edit_takes_no_time(every_image: Image) -> None:
    with LabSpec(image=every_image, time="virtual").start() as lab:
        with lab.rule("ip_rcv = edit ip.ttl=9 @1-3 if icmp[icmptype] == icmp-echoreply") as rule:
            said = lab.run(["ping", "-c3", "guest"]).stdout
        assert rule.unedited == 0
    assert re.findall(r"ttl=(\d+) time=([\d.]+) ms", said) == [("9", "0.001"), ("9", "0.000"), ("9", "0.000")]
