"""What other programs read of a trace: tshark, Perfetto's own messages, and two traces side by side."""

import json
import re
from pathlib import Path

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import ARP
from scapy.utils import rdpcap

from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.trace.journey import is_readable, journeys
from skblab.trace.model import Trace
from skblab.trace.reader import load
from skblab.view.pcapng import write_pcapng
from support import skblab, without_sums

GUEST = "192.168.10.1"


def made(image: Image, path: Path) -> Path:
    with Lab(image=image) as lab, lab.trace(to=path) as tracer:
        lab.run(["ping", "-n", "-c", "2", "-i", "0.1", GUEST])
        tracer.end(status=0)
    return path


@pytest.fixture(scope="module")
def file(every_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trace of two pings and of the question who the guest is, on each series."""
    return made(every_image, tmp_path_factory.mktemp("export") / "run.skblab")


@pytest.fixture
def trace(file: Path) -> Trace:
    return load(file)


def tshark(path: Path, *options: str) -> list[list[str]]:
    done = process.run(["tshark", "-r", path, "-n", *options], timeout_s=60)
    assert done.returncode == 0, done.stderr
    return [line.split("\t") for line in done.stdout.splitlines()]


def test_tshark_shows_functions_and_facts(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    count = write_pcapng(trace, path)
    fields = ("frame.interface_name", "frame.comment", "frame.time_epoch", "icmp.type", "arp.opcode", "frame.len")
    rows = tshark(path, "-T", "fields", *(word for field in fields for word in ("-e", field)))
    steps = [step for step in trace.steps if is_readable(step)]
    assert len(rows) == count == len(steps) > 50
    assert [row[0] for row in rows] == [step.function.name for step in steps]
    of_icmp_rcv = [row for row in rows if row[0] == "icmp_rcv"]
    assert [row[3] for row in of_icmp_rcv] == ["8", "8"]
    assert all(f"packet {step.packet}, skb {step.skb:#x}" in row[1] for step, row in zip(steps, rows, strict=True))
    assert {row[5] for row in of_icmp_rcv} == {"98"}  # with the Ethernet header that is made up
    assert any(row[0] == "arp_rcv" and row[4] == "1" for row in rows)
    times_s = [float(row[2]) for row in rows]
    assert times_s == sorted(times_s)
    assert not tshark(path, "-Y", "_ws.malformed")


def test_tcpdump_and_scapy_read_every_packet(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    count = write_pcapng(trace, path)
    done = process.run(["tcpdump", "-nr", path], timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == count
    assert done.stdout.count("ICMP echo request, id") > 20
    assert "ARP, Request who-has 192.168.10.1" in done.stdout
    read = rdpcap(str(path))
    assert len(read) == count
    assert {type(one.payload) for one in read} == {IP, ARP}


def test_the_interfaces_say_what_they_are(trace: Trace, tmp_path: Path) -> None:
    path = tmp_path / "run.pcapng"
    write_pcapng(trace, path)
    described = tshark(path, "-T", "fields", "-e", "frame.interface_name", "-e", "frame.interface_description")
    assert ["icmp_rcv", "int icmp_rcv(struct sk_buff *skb) net/ipv4/icmp.c:"] in [
        [name, text[: text.rindex(":") + 1]] for name, text in described
    ]


def test_perfettos_own_messages_read_it(file: Path, trace: Trace, tmp_path: Path) -> None:
    """The package's trace processor is a program that it fetches from the internet: here its messages must do."""
    from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as messages  # noqa: PLC0415

    path = tmp_path / "run.pftrace"
    done = skblab("export", str(file), "--perfetto", str(path))
    assert done.returncode == 0, done.stderr
    read = messages.Trace()
    read.ParseFromString(path.read_bytes())
    names = {
        one.track_descriptor.uuid: one.track_descriptor.name for one in read.packet if one.HasField("track_descriptor")
    }
    events = [(one.timestamp, one.track_event) for one in read.packet if one.HasField("track_event")]
    open_ns: dict[int, list[tuple[int, str]]] = {}
    slices = []
    for at_ns, event in events:
        stack = open_ns.setdefault(event.track_uuid, [])
        if event.type == event.TYPE_SLICE_BEGIN:
            assert not stack or stack[-1][0] <= at_ns
            stack.append((at_ns, event.name))
        elif event.type == event.TYPE_SLICE_END:
            begun_ns, name = stack.pop()
            slices.append((names[event.track_uuid], name, at_ns - begun_ns))
    assert not any(open_ns.values())
    network = [call.step for one in journeys(trace) if one.is_of_network for _, call in one.walk()]
    assert sorted(took for _, _, took in slices) == sorted(step.took_ns for step in network if step.took_ns is not None)
    assert any("echo request" in track and name == "icmp_rcv()" for track, name, _ in slices)
    assert any("echo reply" in track and name == "ip_output()" for track, name, _ in slices)
    arrows = [flow for _, event in events for flow in event.flow_ids]
    assert {flow for _, event in events for flow in event.terminating_flow_ids} >= {
        kin.packet for kin in trace.kin if kin.packet in arrows and any(step.packet == kin.packet for step in network)
    }


def test_what_exists_is_not_overwritten(file: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("mine")
    for option in ("--pcapng", "--perfetto"):
        done = skblab("export", str(file), option, str(there))
        assert done.returncode == 2
        assert f"cannot write {there}" in done.stderr
    assert there.read_text() == "mine"
    assert skblab("export", str(file)).returncode == 2


@pytest.fixture(scope="module")
def both(image: Image, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A ping that is delivered, and one that is dropped at icmp_rcv()."""
    folder = tmp_path_factory.mktemp("diff")
    with Lab(image=image) as lab:
        lab.run(["ping", "-n", "-c", "1", GUEST])  # who is who is known then
        with lab.trace(filter="icmp", to=folder / "delivered"):
            lab.run(["ping", "-n", "-c", "1", GUEST])
        with lab.trace(filter="icmp", to=folder / "dropped"), lab.rule("icmp_rcv = drop NOT_SPECIFIED"):
            lab.run(["ping", "-n", "-c", "1", "-W", "0.3", GUEST])
    return folder / "delivered", folder / "dropped"


def test_delivered_against_dropped(both: tuple[Path, Path]) -> None:
    done = skblab("diff", *map(str, both))
    assert done.returncode == 1, done.stderr
    lines = done.stdout.splitlines()
    assert any(line.startswith("-") and line.endswith(" icmp_reply()") for line in lines)
    assert any(line.startswith(" ") and line.endswith(" icmp_rcv()") for line in lines)
    assert not any(line.startswith("-") and line.endswith(" ip_rcv()") for line in lines)
    (dropped,) = (line for line in lines if "drop: " in line)
    assert dropped.startswith("+")
    assert dropped.endswith("()  drop: by a rule")
    timed = skblab("diff", "--times", *map(str, both)).stdout
    assert re.search(r"^ +\d+\.\d\d +\d+\.\d\d  .* +icmp_rcv\(\)$", timed, re.MULTILINE), timed
    said = [json.loads(line) for line in skblab("diff", "--json", *map(str, both)).stdout.splitlines()]
    assert {one["mark"] for one in said} >= {" ", "-"}
    assert "ip_rcv" in {one["name"] for one in said if one["mark"] == " "}


def test_the_same_is_the_same(both: tuple[Path, Path]) -> None:
    done = skblab("diff", str(both[0]), str(both[0]))
    assert (done.returncode, done.stdout.splitlines()[-1], done.stderr) == (0, "the journeys are the same", "")


def test_steps_that_are_missing_are_named(both: tuple[Path, Path], tmp_path: Path) -> None:
    """Of a trace whose writer was killed, or that was faster than it, a difference says less."""
    cut, lost = tmp_path / "cut", tmp_path / "lost"
    data = without_sums(both[0])
    cut.write_bytes(data[: data.rindex(b"END ")])
    lost.write_bytes(data.replace(b'"lost":0,"forgotten"', b'"lost":7,"forgotten"'))
    for path, said in ((cut, "the trace is not whole"), (lost, "events lost: 7")):
        done = skblab("diff", str(path), str(both[0]))
        assert done.returncode == 0
        assert f"{path} may lack steps of the packet: {said}" in done.stderr


def test_two_kernels(tmp_path: Path, image: Image) -> None:
    new = made(image, tmp_path / "new")
    from skblab.image.store import find_image  # noqa: PLC0415

    old = made(find_image("6.1"), tmp_path / "old")
    done = skblab("diff", str(old), str(new), "--times")
    assert done.returncode == 1
    assert any("sk_skb_reason_drop()" in line and line.startswith("+") for line in done.stdout.splitlines())
    assert any("kfree_skb_reason()" in line and line.startswith("-") for line in done.stdout.splitlines())


def test_no_such_packet(both: tuple[Path, Path]) -> None:
    done = skblab("diff", *map(str, both), "--packet", "12345")
    assert done.returncode == 2
    assert "there is no packet 12345" in done.stderr
