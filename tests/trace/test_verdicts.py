"""A verdict names the packet and the call that it belongs to: nothing is matched by address, name or time."""

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skblab.agent import abi
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.trace.file import STEP, TraceWriter, read_chunks
from skblab.trace.model import Step, Trace
from skblab.trace.reader import load

GUEST = "192.168.10.1"
LONG = "greater 600"
LISTENER = """
import signal, socket
tcp = socket.create_server(('', 80))
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
signal.pause()
"""
LISTEN_AND_WRITE = (
    "nft add table ip t && nft 'add chain ip t c { type filter hook input priority 0 ; }'"
    f' && nft add rule ip t c ip ttl set 33 && exec python3 -c "{LISTENER}"'
)


def with_verdicts(trace: Trace) -> list[Step]:
    assert (trace.whole, trace.end["lost"]) == (True, 0)
    return [step for step in trace.steps if step.verdict]


def places(trace: Trace) -> set[tuple[int, int]]:
    return {(said["packet"], said["call"]) for said in trace.verdicts}


def ping(lab: Lab, *options: str) -> None:
    lab.run(["ping", "-n", "-q", "-c", "1", "-W", "1", *options, GUEST], timeout_s=20)


def test_a_verdict_belongs_to_its_call(every_lab: Lab) -> None:
    with every_lab.trace(filter="icmp") as tracer, every_lab.rule("icmp_rcv = drop"):
        ping(every_lab)
    trace = tracer.trace()
    (step,) = with_verdicts(trace)
    assert (step.function.name, step.verdict, step.by_rule) == ("icmp_rcv", "drop", True)
    assert places(trace) == {(step.packet, step.call)}


def test_where_the_function_is_not_traced_it_belongs_to_the_step_around_or_the_last_one(every_lab: Lab) -> None:
    """However many steps of others lie between: the packet waits while three hundred pings come and go."""
    with (
        every_lab.trace(["ip_rcv"], filter="icmp") as tracer,
        every_lab.rule(f"icmp_rcv = drop if {LONG}"),
        every_lab.hold("ip_local_deliver", LONG) as held,
        every_lab.popen(["ping", "-n", "-c", "1", "-W", "5", "-s", "700", GUEST], stdout=subprocess.DEVNULL) as client,
    ):
        (packet,) = held.take(1)
        ping(every_lab, "-f", "-c", "300")
        packet.release()
        assert packet.wait(10)
        client.wait(20)
    trace = tracer.trace()
    (step,) = with_verdicts(trace)
    assert step.length > 600
    hold, drop = step.verdict.split(", ")
    assert hold.startswith("hold at ip_local_deliver(): released after ")
    assert drop == "drop at icmp_rcv()"
    assert places(trace) == {(step.packet, step.call)}
    assert len(trace.verdicts) == 3


def test_a_packet_ends_at_the_step_of_the_verdict(every_lab: Lab) -> None:
    with every_lab.trace(filter="icmp") as tracer, every_lab.rule("skb_release_data = trace"):
        ping(every_lab)
    steps = with_verdicts(tracer.trace())
    assert any(step.freed for step in steps)
    assert {(step.function.name, step.verdict) for step in steps} == {("skb_release_data", "trace")}


def test_a_packet_that_is_not_followed(every_lab: Lab) -> None:
    with every_lab.trace(filter="udp") as tracer, every_lab.rule("icmp_rcv = trace"):
        ping(every_lab)
    trace = tracer.trace()
    assert not with_verdicts(trace)
    assert places(trace) == {(0, 0)}


@pytest.fixture(scope="module")
def writing(every_image: Image) -> Iterator[Lab]:
    with Lab(image=every_image, root="host", commands=[LISTEN_AND_WRITE]) as lab:
        yield lab


@pytest.mark.parametrize("returns", [True, False])
def test_other_bytes_are_the_same_packet(writing: Lab, returns: bool) -> None:
    """Where a listener has a clone, nftables writes into a copy of the bytes: pskb_expand_head() moves skb->head."""
    hits: list[abi.Hit] = []
    with (
        writing.trace(["ip_rcv"], filter="icmp", returns=returns) as tracer,
        writing.agent.rules.arm(Rule.parse("ip_rcv = trace if icmp"), lambda hit, _: hits.append(hit)),
        writing.agent.rules.arm(Rule.parse("icmp_rcv = trace"), lambda hit, _: hits.append(hit)),
    ):
        ping(writing)
    trace = tracer.trace()
    steps = {step.call: step for step in trace.steps}
    first, last = hits
    assert first.head != last.head
    assert first.followed == last.followed
    assert steps[first.call].function.name == "ip_rcv"
    assert steps[last.call].packet == last.followed
    assert steps[last.call].verdict.endswith("trace at icmp_rcv()")
    if returns:
        assert last.call == first.call
    else:  # without returns nothing is known to be around: it is the last step before the move
        assert steps[last.call].function.name == "skb_release_data"


def test_call_numbers_wrap(every_lab: Lab, tmp_path: Path) -> None:
    """agent_step.call is a __u32: here the numbers of a real trace pass 2^32 in the middle of it."""
    with every_lab.trace(filter="icmp", to=tmp_path / "run") as tracer, every_lab.rule("icmp_rcv = drop @2-3"):
        ping(every_lab, "-c", "4", "-i", "0.1")
    last = min(step.call for step in with_verdicts(tracer.trace()))

    def wrapped(call: int) -> int:
        return call - last if call > last else (1 << 32) - 1 - (last - call)

    writer = TraceWriter(tmp_path / "wrapped")
    for kind, payload in read_chunks(tmp_path / "run"):
        if kind == STEP:
            writer.steps(memoryview(b"".join(renumbered(payload, wrapped))))
        else:
            said = json.loads(bytes(payload))
            writer.write(kind, said | {"call": wrapped(said["call"])} if "call" in said else said)
    writer.close()
    assert [step.verdict for step in with_verdicts(load(tmp_path / "wrapped"))] == ["drop", "drop"]


def renumbered(records: memoryview, number: Callable[[int], int]) -> Iterator[bytes]:
    """Yield the records with other numbers of calls in steps; returns and kin are not looked at."""
    place = 0
    while place < len(records):
        size, kind, _ = abi.RECORD.unpack_from(records, place)
        record = bytes(records[place : place + size])
        if kind == abi.StepKind.STEP:
            fields = list(abi.STEP.unpack_from(record))
            fields[5] = number(fields[5])
            record = abi.STEP.pack(*fields) + record[abi.STEP.size :]
        yield record
        place += size
