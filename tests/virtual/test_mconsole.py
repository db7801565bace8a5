"""Virtual time: the management console. The guest answers at the moment at which it rests."""

import json
from collections.abc import Iterator

import pytest

from skblab.errors import GuestLost, MconsoleRefused, UsageError
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec
from support import skblab


@pytest.fixture(scope="module")
def lab(every_image: Image) -> Iterator[Lab]:
    with LabSpec(image=every_image, time="virtual").start() as lab:
        yield lab


def test_every_command_is_answered_and_no_time_passes(lab: Lab) -> None:
    console, before_s = lab.guest.mconsole, lab.clock.now
    assert lab.image.release in console.version()
    assert "sysrq <letter>" in console.help()
    assert float(console.proc("uptime").split()[0]) == pytest.approx(before_s, abs=0.01)
    assert console.proc("meminfo").startswith("MemTotal:")
    assert "Call Trace:" in console.stack(1)
    for key, says in (("h", "HELP"), ("m", "Mem-Info"), ("q", "event_handler"), ("w", "Blocked State"), ("s", "Sync")):
        assert says in console.sysrq(key)
    console.log("here it is\n")
    assert "here it is\n" in lab.console.text()
    console.config("con4", "null")
    assert console.config("con4") == "null"
    console.remove("con4")
    for command, words in (
        ("proc net/snmp", "Read of file failed"),  # as in real time: it has no read_iter()
        ("proc nosuch", "Failed to open file"),
        ("frobnicate", "Unknown command"),
        ("stack 99999", "Couldn't find that pid"),
        ("go", "Not stopped"),
    ):
        with pytest.raises(MconsoleRefused, match=words):
            console.command(command)
    console.cad()  # its init takes no notice, as in real time
    assert lab.clock.now == pytest.approx(before_s, abs=1e-4)  # a task of the kernel's reads the files
    assert "1 received" in lab.run(["ping", "-c1", "guest"]).stdout


def test_it_answers_while_programs_wait(lab: Lab) -> None:
    with lab.hold("icmp_rcv", "icmp[icmptype] == icmp-echo") as held:
        client = lab.popen(["ping", "-c1", "guest"])
        (packet,) = held.take()
        assert "MemTotal" in lab.guest.mconsole.proc("meminfo")
        packet.release()
        assert client.wait() == 0


def test_what_cannot_be(lab: Lab) -> None:
    with pytest.raises(UsageError, match="is not stopped by mconsole"):
        lab.guest.mconsole.stop()
    with pytest.raises(UsageError, match="no registers"):
        lab.guest.mconsole.sysrq("p")
    with pytest.raises(UsageError, match="does not reboot"):
        lab.guest.mconsole.reboot()
    assert lab.guest.mconsole.version()


@pytest.mark.complains("warning", "panic")
@pytest.mark.parametrize("end", ["halt", "sysrq o", "sysrq c"])
def test_what_ends_the_kernel(image: Image, end: str) -> None:
    with LabSpec(image=image, time="virtual").start() as lab:
        console = lab.guest.mconsole
        console.halt() if end == "halt" else console.sysrq(end[-1])
        assert not lab.guest.alive
        with pytest.raises(GuestLost):
            console.version()


def test_the_command_line() -> None:
    name = "virtual-mconsole"
    assert skblab("up", name, "--time", "virtual").returncode == 0
    try:
        answers = [skblab("mconsole", name, "proc", "uptime", "--json") for _ in range(2)]
        assert [json.loads(one.stdout)["answer"].split()[0] for one in answers] == ["1.00", "1.00"]
        refused = skblab("mconsole", name, "stop")
        assert refused.returncode == 2
        assert "stands still while nobody waits\n  hint: " in refused.stderr
        assert skblab("mconsole", name, "halt").returncode == 0
    finally:
        skblab("down", name)
