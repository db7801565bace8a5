"""The guest's clock while gdb has stopped its kernel: it jumps, or stands still."""

import time
from collections.abc import Iterator

import pytest

from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec
from support import counters

STOP_S = 5.0
PORT = 7000
SAYS_SOMETHING = f"exec 3<>/dev/tcp/192.168.10.254/{PORT}; echo something >&3; sleep 100"


@pytest.fixture(params=["running", "frozen"])
def lab(every_image: Image, request: pytest.FixtureRequest) -> Iterator[Lab]:
    with LabSpec(image=every_image, root="host", clock=request.param).start() as lab:
        yield lab


def uptime_s(lab: Lab) -> float:
    return float(lab.guest.run(["cat", "/proc/uptime"]).stdout.split()[0])


def test_a_stop_of_five_seconds(lab: Lab) -> None:
    """A guest that waits for an ACK retransmits at once after the stop, or as if there had been none."""
    server = lab.socket()
    acks = lab.rule(f"ip_rcv = drop @2- if tcp src port {PORT}")
    with server, acks, lab.probe("tcp_retransmit_skb") as retransmissions, lab.debugger() as gdb:
        gdb.resume()
        server.bind(("host", PORT))
        server.listen()
        with lab.guest.popen(["bash", "-c", SAYS_SOMETHING]), server.accept()[0]:
            retransmissions.take(4, timeout_s=30)  # the fifth is some three seconds away
            before, before_s, began_s = counters(lab.guest)["TcpRetransSegs"], uptime_s(lab), time.monotonic()
            gdb.interrupt()
            wait([lab.guest.pidfd], STOP_S)
            gdb.resume()
            after = counters(lab.guest)["TcpRetransSegs"]
            passed_s, real_s = uptime_s(lab) - before_s, time.monotonic() - began_s
    if lab.spec.clock == "running":
        assert passed_s >= STOP_S
        assert after == before + 1
    else:
        assert passed_s <= real_s - STOP_S + 0.02
        assert after == before
