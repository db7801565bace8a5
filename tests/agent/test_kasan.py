"""Every verdict on packets that sockets own, beside a trace, in kernels that find every use of freed memory."""

from pathlib import Path

import pytest

from skblab.session import Session
from skblab.spec import LabSpec

SERVICES, FETCHES = Path("/etc/services"), 20
TAKEN = "tcp port 80 and len > 100"  # with data
RULES = (
    f"tcp_v4_rcv = drop @3 if {TAKEN}",
    f"tcp_v4_rcv = delay 20ms @2 if {TAKEN}",
    f"ip_rcv = duplicate @every 3 if {TAKEN}",
    f"__dev_queue_xmit = hold 2 release reverse @4-5 if {TAKEN}",
    f"ip_rcv = edit ip.tos=4 @every 4 if {TAKEN}",
    f"ip_output = delay 10ms @every 5 if {TAKEN}",
    f"ip_rcv = corrupt 2 @6 if {TAKEN}",
)
FETCH = ["curl", "-sf", "--max-time", "60", *[f"http://guest{SERVICES}"] * FETCHES]


@pytest.mark.parametrize("series", ["6.12", "7.3"])
def test_verdicts_on_packets_that_sockets_own(series: str) -> None:
    spec = LabSpec(series=series, variant="kasan", root="host", memory_mib=384, commands=["python3 -m http.server 80"])
    with spec.start() as lab:
        with lab.trace(filter="tcp port 80") as tracer, Session(lab, RULES) as session:
            outcome = session.run(FETCH, capture=True, timeout_s=90)
        assert (outcome.status, outcome.output[0]) == (0, SERVICES.read_text() * FETCHES)
        assert [str(rule.rule) for rule in outcome.rules if not rule.fired] == []
        assert len(tracer.trace().steps) > 1000
        assert lab.complaints == ()
