"""Virtual time: what Python decides takes no time."""

import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager

import pytest

from skblab.agent.packets import HeldPacket
from skblab.errors import CallbackFailed, UsageError
from skblab.image.image import Image
from skblab.lab import Lab
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


def test_ctrl_c_ends_a_command_while_a_policy_hangs(every_image: Image) -> None:
    hangs, enough = threading.Event(), threading.Event()

    def decide(packet: HeldPacket) -> None:
        if packet.packet.echo and packet.packet.echo[2] == 2:
            hangs.set()
            enough.wait()

    def interrupt() -> None:
        hangs.wait()
        os.kill(os.getpid(), signal.SIGINT)

    interrupter = threading.Thread(target=interrupt)
    with LabSpec(image=every_image, time="virtual").start() as lab:
        with lab.on("icmp_rcv", "icmp[icmptype] == icmp-echo", decide) as policy:
            interrupter.start()
            with pytest.raises(KeyboardInterrupt):
                lab.run(["ping", "-c3", "guest"])
            interrupter.join()
            enough.set()
            assert "time=0.0" in lab.run(["ping", "-c1", "guest"]).stdout
        assert policy.decided == 3


def test_a_policy_that_fails_its_test_stops_no_clock(image: Image) -> None:
    """pytest.fail() raises no Exception; every packet behind that goes on."""
    with LabSpec(image=image, time="virtual").start() as lab:
        with (
            pytest.raises(CallbackFailed, match="this one"),
            lab.on("icmp_rcv", "icmp", lambda _: pytest.fail("this one")),
        ):
            said = lab.run(["ping", "-c3", "guest"], timeout_s=60).stdout
        assert "3 received" in said


def test_an_edit_takes_no_time(every_image: Image) -> None:
    with LabSpec(image=every_image, time="virtual").start() as lab:
        with lab.rule("ip_rcv = edit ip.ttl=9 @1-3 if icmp[icmptype] == icmp-echoreply") as rule:
            said = lab.run(["ping", "-c3", "guest"]).stdout
        assert rule.unedited == 0
    (ttl, first), *others = re.findall(r"ttl=(\d+) time=([\d.]+) ms", said)
    assert (ttl, others) == ("9", [("9", "0.000"), ("9", "0.000")])
    assert first in {"0.000", "0.001"}  # half a microsecond, rounded


SENDS = """
import socket
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for number in b"123":
    sender.sendto(bytes([number]), ("guest", 9999))
"""
RECEIVES = """
import socket
receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
receiver.bind(("", 9999))
print(*(receiver.recv(9).decode() for _ in range(3)))
"""


def order(lab: Lab, deciding: AbstractContextManager[object]) -> str:
    """Return in which order three datagrams come that are sent at one moment."""
    with lab.guest.popen(["python3", "-c", RECEIVES], stdout=subprocess.PIPE) as receiver:
        lab.clock.advance(1)
        before_s = lab.clock.now
        with deciding:
            lab.run(["python3", "-c", SENDS])
            said, _ = receiver.communicate(timeout=10)
        assert lab.clock.now - before_s < 0.1
        return said.decode().strip()


def test_a_packet_that_goes_on_keeps_its_place(every_image: Image) -> None:
    def says(word: str) -> Callable[[HeldPacket], str | None]:
        return lambda held: word if held.packet.data.endswith(b"2") else None

    def lets_it_run(held: HeldPacket) -> None:
        assert lab.guest.run(["echo", held.function]).stdout == "udp_rcv\n"

    with LabSpec(image=every_image, time="virtual").start() as lab:
        udp = "udp port 9999"
        assert order(lab, lab.rule(f"udp_rcv = edit udp.chksum=0 @2 if {udp}")) == "1 2 3"
        assert order(lab, lab.rule(f"ip_rcv = edit ip.ttl=9 @1-2 if {udp}")) == "1 2 3"
        assert order(lab, lab.on("udp_rcv", udp, says("edit udp.chksum=0"))) == "1 2 3"
        assert order(lab, lab.on("udp_rcv", udp, says("delay 20ms"))) == "1 3 2"
        assert order(lab, lab.on("udp_rcv", udp, says("hold"), lease_s=0.05)) == "1 3 2"
        assert order(lab, lab.on("udp_rcv", udp, lets_it_run)) == "1 2 3"


def test_it_cannot_wait_for_what_takes_time(image: Image) -> None:
    """Time does not pass until it has decided: it would wait for ever. What takes none is done."""
    said: list[object] = []
    with LabSpec(image=image, time="virtual", root="host").start() as lab, lab.probe("ip_rcv", "udp") as probe:

        def waits(_: HeldPacket) -> None:
            said.append(lab.run(["true"], timeout_s=3).returncode)
            with pytest.raises(UsageError, match="a policy waits for something that takes virtual time"):
                probe.take(1, timeout_s=0.3)
            said.append("refused")

        with lab.on("icmp_rcv", "icmp[icmptype] == icmp-echo", waits):
            assert lab.run(["ping", "-n", "-c1", "guest"], timeout_s=6).returncode == 0
    assert said == [0, "refused"]
