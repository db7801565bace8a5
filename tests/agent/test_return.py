"""``return``: a function does not run, and its caller gets a value; with a packet, without, and with one of its own."""

import contextlib
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from skblab.session import Session

if TYPE_CHECKING:
    from skblab.event import Hit

CALLER = "__ip4_datagram_connect()"  # by way of functions that are inlined, or jump
SEND = """
import socket, sys
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.settimeout(0.5)
try:
    one.connect((sys.argv[1], 9))
    one.send(b"x")
    one.recv(10)
except OSError as error:
    print(error.__class__.__name__, error.errno)
"""


@pytest.fixture(scope="module")
def served(every_image: Image) -> Iterator[Lab]:
    with Lab(image=every_image, root="host", time="virtual") as lab:
        yield lab


def send(lab: Lab) -> str:
    """Return how one datagram to a closed port fails. By address: to resolve a name looks for routes, too."""
    return lab.run(["python3", "-c", SEND, "192.168.10.1"]).stdout.strip()


def test_nothing_is_sent_in_answer(served: Lab) -> None:
    """A void function with a packet."""
    assert send(served) == "ConnectionRefusedError 111"
    with served.rule("__icmp_send = return if udp") as rule:
        assert send(served) == "TimeoutError None"
    assert (rule.fired, rule.counts.verdicts, rule.counts.arrived) == (True, 1, 1)
    assert send(served) == "ConnectionRefusedError 111"


def test_an_error_in_a_pointer(served: Lab) -> None:
    """Without a packet: the first call alone fails."""
    hits: list[Hit] = []
    with served.rule("ip_route_output_key_hash = return -EHOSTDOWN @1", hits.append) as rule:
        assert send(served) == "OSError 112"
        assert send(served) == "ConnectionRefusedError 111"
    assert rule.counts.passed == rule.counts.arrived - 1 > 0
    assert [(hit.skb, hit.summary(), hit.verdict) for hit in hits] == [(0, f"called by {CALLER}", "return")]


def test_no_memory_for_a_packet(served: Lab) -> None:
    with served.rule("__alloc_skb = return NULL @1") as rule:
        assert send(served) == "OSError 105"  # ENOBUFS, net/core/sock.c sock_alloc_send_pskb()
    assert rule.fired


def test_the_packet_of_a_function_that_takes_it_over_is_freed(served: Lab) -> None:
    with served.trace(["ip_output", "*kb_reason*"], filter="udp") as tracer:
        with served.rule("ip_output = return -EHOSTDOWN @1 if udp") as rule:
            assert send(served) == "OSError 112"
        assert rule.fired
    (step,) = (one for one in tracer.trace().steps if one.by_rule)
    assert (step.function.name, step.verdict, step.value) == ("ip_output", "return -EHOSTDOWN", (1 << 64) - 112)


def test_who_calls(served: Lab) -> None:
    """With a trace that has replaced the return address, too."""
    for traced in (False, True):
        hits: list[Hit] = []
        tracer = served.trace(["ip_*"], calls=["ip_route_output_key_hash"]) if traced else contextlib.nullcontext()
        with tracer, served.rule("ip_route_output_key_hash = trace", hits.append):
            send(served)
        assert CALLER in [hit.caller for hit in hits]
        assert all(hit.caller for hit in hits)


def test_it_counts_what_did_not_run(served: Lab) -> None:
    with Session(served, ["icmp_rcv = return 0 @2 if icmp[icmptype] == icmp-echo"]) as session:
        outcome = session.run(["ping", "-c", "3", "-W", "1", "guest"], capture=True)
    assert re.search("3 packets transmitted, 2 received", outcome.output[0])
    (rule,) = outcome.rules
    assert rule.lines() == [f"{rule.rule}: arrived 3, passed 2, returned 1"]
    assert rule.named_counts()["returned"] == 1


def test_under_kasan() -> None:
    """No freed packet is used. Each function fails again and again."""
    with Lab(image=find_image(variant="kasan"), root="host", time="virtual", memory_mib=384) as lab:
        lab.serve("python3 -m http.server -d /etc 80")
        for rule in (
            "ip_output = return -ENOBUFS @every 2",
            "__dev_queue_xmit = return 2 @every 3",
            "tcp_v4_rcv = return 0 @every 4",
            "ip_rcv = return 1 @every 3",
            "__alloc_skb = return NULL @every 5",
            "pskb_expand_head = return -ENOMEM",
            "sk_filter_trim_cap = return -EPERM @every 3",
            "ip_route_output_key_hash = return -ENETUNREACH @every 2",
        ):
            with lab.rule(rule):
                lab.run(["curl", "-s", "--max-time", "5", "http://192.168.10.1/services"], timeout_s=60)
                lab.run(["ping", "-n", "-c", "5", "-i", "0.2", "-w", "3", "192.168.10.1"], timeout_s=60)
        assert lab.run(["ping", "-c", "1", "guest"]).returncode == 0
        assert lab.complaints == ()
