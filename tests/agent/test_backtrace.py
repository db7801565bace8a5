"""A held packet knows who called: the same frames as gdb reads, without stopping anything."""

import itertools
import socket
import subprocess
from collections.abc import Iterable
from typing import TYPE_CHECKING

import pytest

from skblab.debugger.inside import wire
from skblab.host import process
from skblab.image.unwind import Frame
from skblab.lab import Lab
from skblab.rule import Rule

if TYPE_CHECKING:
    from skblab.agent.abi import Hit

ETH_P_IP = 0x0800


def ping(lab: Lab) -> process.Client:
    return lab.popen(["ping", "-n", "-c", "1", "-W", "10", "guest"], stdout=subprocess.PIPE)


def names_of(frames: Iterable[Frame | wire.GdbFrame]) -> list[str]:
    """Return each frame's function as far as the softirq, which may interrupt anything; a split function once.

    Which of the neighbour's functions sends a packet differs from one to the next: there is one for an old address.
    """
    names = [name for name, _ in itertools.groupby(frame.function for frame in frames) if not name.startswith("neigh_")]
    return names[: names.index("handle_softirqs") + 1]


@pytest.mark.parametrize("function", ["icmp_rcv", "ip_rcv", "ip_output", "__dev_queue_xmit"])
def test_the_backtrace_of_a_held_packet_is_gdbs(every_lab: Lab, function: str) -> None:

    with every_lab.hold(function, "icmp") as hold:
        client = ping(every_lab)
        (held,) = hold.take(1)
        ours = held.backtrace
        held.release()
        assert process.finish(client, timeout_s=20).returncode == 0
    with every_lab.debugger() as debugger:
        debugger.set_stop(function, condition=f"skb->protocol == {socket.htons(ETH_P_IP)}")
        debugger.resume()
        client = ping(every_lab)
        stopped = debugger.wait_stop(20)
        gdbs = stopped.frames
    assert process.finish(client, timeout_s=20).returncode == 0
    assert names_of(ours) == names_of(gdbs)
    assert ours[0].function == function
    at = {(frame.function, frame.line) for frame in gdbs}
    elsewhere = {
        one.function
        for one in ours[1:]
        if one.function in names_of(ours) and not one.inlined and (one.function, one.line) not in at
    }
    assert elsewhere <= {"ip_push_pending_frames"}  # which gdb 18 places where its inlining function ends


def test_a_packet_that_goes_on_from_a_hold_is_called_by_the_agent(lab: Lab) -> None:
    with lab.hold("ip_rcv", "icmp") as outer, lab.hold("icmp_rcv") as inner:
        client = ping(lab)
        outer.take(1)[0].release()
        (held,) = inner.take(1)
        names = [frame.function for frame in held.backtrace]
        held.release()
        assert process.finish(client, timeout_s=20).returncode == 0
    assert names[:2] == ["icmp_rcv", "ip_protocol_deliver_rcu"]
    assert names.index("ip_rcv") < names.index("[module]") < names.index("handle_softirqs")


def test_only_a_hold_takes_the_stack(lab: Lab) -> None:
    hits: list[Hit] = []
    with lab.agent.rules.arm(Rule("icmp_rcv", "trace"), lambda hit, _: hits.append(hit)):
        assert process.finish(ping(lab), timeout_s=20).returncode == 0
    assert [hit.stack for hit in hits] == [()]
