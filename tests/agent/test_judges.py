"""curl and iperf3 as judges of verdicts, over both families: what an ordinary client sees of a packet's fate.

In virtual time, where what they measure is exact. A rule meets the packets of both ends then.
"""

import contextlib
import json
from collections.abc import Iterator

import pytest

from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec

FAMILIES = {
    "-4": ("tcp_v4_rcv", "udp_rcv", "edit ip.ttl=9", "tcp[tcpflags] == tcp-syn", "ip[2:2] > 500"),
    "-6": ("tcp_v6_rcv", "udpv6_rcv", "edit ipv6.hlim=9", "ip6[53] == tcp-syn", "ip6[4:2] > 500"),
}


@pytest.fixture(scope="module")
def serving(image: Image) -> Iterator[Lab]:
    """A lab that serves HTTP and iperf3, over both families."""
    commands = ["python3 -m http.server 80 --bind ::", "iperf3 -s"]
    with LabSpec(image=image, time="virtual", commands=commands, memory_mib=256).start() as lab:
        yield lab


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("verdict", "at_least_s", "at_most_s"),
    [
        ("accept", 0, 0.001), ("trace", 0, 0.001), ("delay 100ms @1", 0.1, 0.101), ("drop @1", 1, 1.1),
        ("duplicate 2", 0, 0.001), ("EDIT", 0, 0.001), ("hold 1", 0, 0.001),
    ],
)  # fmt: skip
def test_curl(serving: Lab, family: str, verdict: str, at_least_s: float, at_most_s: float) -> None:
    function, _, edit, syn, _ = FAMILIES[family]
    argv = ["curl", family, "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_connect}", "http://guest/"]
    with serving.rule(f"{function} = {verdict.replace('EDIT', edit)} if {syn}") as running:
        done = serving.run(argv, timeout_s=20)
        assert running.armed.counts.arrived >= 1
    code, connected_s = done.stdout.split()
    assert code == "200"
    assert at_least_s <= float(connected_s) < at_most_s


@pytest.mark.parametrize("family", FAMILIES)
def test_curl_while_its_syn_is_in_the_hand(serving: Lab, family: str) -> None:
    function, _, _, syn, _ = FAMILIES[family]
    with serving.hold(function, syn) as held:
        client = serving.popen(["curl", family, "-s", "-o", "/dev/null", "-m", "10", "http://guest/"])
        first, again = held.take(2)  # curl's kernel retransmits
        assert again.held_at_ns - first.held_at_ns == pytest.approx(1e9, rel=0.05)
        first.drop()
        again.release()
        assert client.wait(10) == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_iperf3_counts_every_tenth_datagram_as_lost(serving: Lab, family: str) -> None:
    _, function, _, _, large = FAMILIES[family]
    with contextlib.closing(serving.rule(f"{function} = drop @every 10 if {large}")) as running:
        done = serving.run(["iperf3", family, "-c", "guest", "-u", "-b", "10M", "-t", "1", "-J"], timeout_s=30)
    total = json.loads(done.stdout)["end"]["sum"]
    assert total["packets"] > 500
    assert total["lost_percent"] == pytest.approx(10, abs=0.2)
    assert running.armed.counts.dropped == pytest.approx(total["packets"] / 10, abs=2)
