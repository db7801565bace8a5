"""Frames of up to 9,000 bytes, on every link and under every rule; losses of a link are counted and printed."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.guest.losses import Losses
from skblab.image.image import Image
from skblab.lab import Lab
from support import counters, skblab

LARGEST = (("192.168.10.1", 8972), ("fd00:10::1", 8952), ("192.168.11.1", 8972), ("fd00:11::1", 8952))

HOST = {"192.168.10.1": "192.168.10.254", "fd00:10::1": "fd00:10::254",
        "192.168.11.1": "192.168.11.254", "fd00:11::1": "fd00:11::254"}  # fmt: skip


def ping(lab: Lab, address: str, size: int, *words: str, guest: bool = False, count: int = 2) -> str:
    """Send pings that must not be fragmented, with bytes that ping compares; return ping's output."""
    argv = ["ping", "-n", "-c", str(count), "-i", "0.1", "-W", "2", "-M", "do", "-s", str(size), *words, address]
    return (lab.guest if guest else lab).run(argv, timeout_s=30).stdout


def set_mtu(lab: Lab, mtu: int, *, of_guest: bool = True, of_host: bool = True) -> None:
    for host, guest in (("skb0", "vec0"), ("wan", "vec1")):
        if of_host:
            assert lab.run(["ip", "link", "set", host, "mtu", str(mtu)]).returncode == 0
        if of_guest:
            lab.guest.run(["ip", "link", "set", guest, "mtu", str(mtu)], check=True)


# Keeps all that it is sent.
HOARDER = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.setsockopt(socket.SOL_SOCKET, 33, 1 << 30)  # SO_RCVBUFFORCE
one.bind(("", 99))
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", params=["tap", "veth"])
def lab(every_image: Image, request: pytest.FixtureRequest) -> Iterator[Lab]:
    links = [request.param, f"wan,{request.param}"]
    with Lab(image=every_image, link=links, root="host", memory_mib=64) as lab:
        yield lab


def test_jumbo_frames_and_back(lab: Lab) -> None:
    for _ in range(2):
        set_mtu(lab, 9000)
        for address, size in LARGEST:
            assert "2 received" in ping(lab, address, size)
            assert "2 received" in ping(lab, HOST[address], size, guest=True)
        set_mtu(lab, 1500)
        for address, size in LARGEST:
            assert "2 received" in ping(lab, address, size - 7500)
            assert "0 received" in ping(lab, address, size - 7499, count=1)  # too long for the sender
    assert lab.link_losses == Losses()
    refused = lab.guest.run(["ip", "link", "set", "vec0", "mtu", "9001"])
    assert "mtu greater than device maximum" in refused.stderr


def test_jumbo_frames_under_rules(lab: Lab) -> None:
    set_mtu(lab, 9000)
    for address, size in LARGEST:
        six = ":" in address
        receive, function, echo = ("ipv6_rcv", "icmpv6_rcv", "icmp6") if six else ("ip_rcv", "icmp_rcv", "icmp")
        with lab.rule(f"{function} = delay 30ms"), lab.trace(filter=echo) as tracer:
            assert "2 received" in ping(lab, address, size)
        longest = max(step.length for step in tracer.trace().steps if step.function.name == receive)
        assert longest == 9000
        field = "ipv6.tc=8" if six else "ip.tos=4"
        with lab.rule(f"{receive} = edit {field} if {echo}") as edited:
            said = ping(lab, address, size)
        assert edited.unedited == 0
        assert "2 received" in said
        assert "wrong data byte" not in said
        with lab.rule(f"{function} = duplicate 1"):
            assert "+1 duplicates" in ping(lab, address, size, "-W", "1")
        with lab.hold(receive, echo) as hold:
            client = lab.popen(["ping", "-n", "-c", "1", "-M", "do", "-s", str(size), address])
            (packet,) = hold.take(1, timeout_s=10)
            assert len(packet.packet.data) == 9000
            packet.release()
            assert client.wait(10) == 0
    set_mtu(lab, 1500)
    assert lab.link_losses == Losses()


def test_a_frame_that_was_cut_is_counted(lab: Lab) -> None:
    before = lab.link_losses
    set_mtu(lab, 9000, of_guest=False)
    assert "0 received" in ping(lab, "192.168.10.1", 3000, "-W", "0.3", count=3)
    assert lab.link_losses - before == Losses(cut=3)
    shown = json.loads(lab.guest.run(["ip", "-s", "-s", "-j", "link", "show", "vec0"], check=True).stdout)[0]["stats64"]
    assert shown["rx"]["errors"] == shown["rx"]["length_errors"] == before.cut + 3
    for size in range(1460, 1540):  # around what the buffer takes: answered or counted, each of them
        cut = lab.link_losses.cut
        answered = "1 received" in ping(lab, "192.168.10.1", size, "-W", "0.2", count=1)
        assert lab.link_losses.cut - cut == (not answered), size
    set_mtu(lab, 1500)
    assert "2 received" in ping(lab, "192.168.10.1", 1472)


def test_a_frame_that_the_host_refuses_is_counted(lab: Lab, request: pytest.FixtureRequest) -> None:
    assert "2 received" in ping(lab, "192.168.10.254", 56, guest=True)  # who has that address is known then
    before = lab.link_losses
    if "veth" in request.node.name:  # a tap takes what it is given
        set_mtu(lab, 9000, of_host=False)
        assert "0 received" in ping(lab, "192.168.10.254", 3000, "-W", "0.3", guest=True, count=3)
        assert lab.link_losses - before == Losses(from_guest=3)
        set_mtu(lab, 1500)
        before = lab.link_losses
    assert lab.run(["ip", "link", "set", "skb0", "down"]).returncode == 0
    assert "0 received" in ping(lab, "192.168.10.254", 56, "-W", "0.3", guest=True, count=3)
    lost = lab.link_losses - before
    assert lost == Losses(from_guest=lost.from_guest)
    assert lost.from_guest >= 3
    assert lab.run(["ip", "link", "set", "skb0", "up"]).returncode == 0
    assert "2 received" in ping(lab, "192.168.10.254", 56, guest=True)
    assert "2 received" in ping(lab, "192.168.10.1", 56)


def test_a_frame_that_finds_the_queue_full_is_counted(lab: Lab) -> None:
    """A stopped kernel receives none: every frame sent has arrived or is counted."""
    assert "2 received" in ping(lab, "192.168.10.1", 56)  # who has that address is known then
    before, came = lab.link_losses, counters(lab.guest)["UdpNoPorts"]
    os.kill(lab.guest.pid, signal.SIGSTOP)
    sent = 3000
    try:
        with lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as raw:
            for _ in range(sent):
                raw.sendto(struct.pack("!4H", 9, 9, 8, 0), ("192.168.10.1", 0))
    finally:
        os.kill(lab.guest.pid, signal.SIGCONT)
    assert "2 received" in ping(lab, "192.168.10.1", 56)
    lost = lab.link_losses - before
    assert lost == Losses(for_guest=lost.for_guest)
    assert lost.for_guest > 0
    assert lost.for_guest + counters(lab.guest)["UdpNoPorts"] - came == sent


def test_it_is_told_at_the_end(tmp_path: Path) -> None:
    command = ["--", "sh", "-c", "ip link set skb0 mtu 9000; ping -n -c 2 -i 0.1 -W 0.3 -M do -s 3000 guest"]
    for words in (["run"], ["trace", "icmp"]):
        lines = tmp_path / words[0]
        done = skblab(words[0], "--json", str(lines), *words[1:], *command)
        assert "skblab: lost on the link: 2 for the guest, longer than its MTU allows" in done.stderr
        end = json.loads(lines.read_text().splitlines()[-1])
        assert end["link"] == {"cut": 2, "no_memory": 0, "for_guest": 0, "from_guest": 0}


@pytest.mark.complains("allocation")
@pytest.mark.parametrize("link", ["tap", "veth"])
def test_a_guest_without_memory_for_a_frame(link: str, every_image: Image) -> None:
    with Lab(image=every_image, link=link, root="host", memory_mib=64) as lab:
        assert lab.run(["ip", "link", "set", "skb0", "mtu", "9000"]).returncode == 0
        lab.guest.run(["ip", "link", "set", "vec0", "mtu", "9000"], check=True)
        lab.guest.run(["sh", "-c", "echo 1000000 1000000 1000000 >/proc/sys/net/ipv4/udp_mem"], check=True)
        hoarder = lab.guest.popen([sys.executable, "-c", HOARDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        with hoarder, lab.socket(kind=socket.SOCK_DGRAM) as sender:
            assert hoarder.stdout
            assert hoarder.stdout.readline() == b"ready\n"
            for _ in range(500):
                for _ in range(16):
                    sender.sendto(bytes(8000), ("guest", 99))
                if lab.link_losses.no_memory:  # the guest's agent answers after it has taken what lay before
                    break
            losses = lab.link_losses
            assert losses.no_memory > 0
            assert (losses.cut, losses.from_guest) == (0, 0)
            hoarder.kill()
            hoarder.wait(10)
        ping(lab, "192.168.10.1", 8972, count=1)  # a veth's buffer that could not be had is asked for behind this one
        assert "2 received" in ping(lab, "192.168.10.1", 8972)
        received, errors = (
            int(lab.guest.run(["cat", f"/sys/class/net/vec0/statistics/{name}"]).stdout)
            for name in ("rx_packets", "rx_errors")
        )
        assert errors == lab.link_losses.no_memory
        assert received > 1000
