"""What a bad wire does: ``corrupt`` and ``rate``; and waiting for a rule, and for a server."""

import re
import struct
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Raw

from skblab.edit import corrupting
from skblab.errors import PacketError, RuleError, Timeout, UsageError
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.rule import Rule
from support import counters

if TYPE_CHECKING:
    from skblab.event import Hit

PING = ["ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "guest"]


@pytest.fixture(scope="module")
def served(image: Image) -> Iterator[Lab]:
    with Lab(image=image, root="host") as lab:
        lab.serve("python3 -m http.server -d / --bind :: 80")
        yield lab


def test_a_corrupted_segment_is_found_by_its_checksum_and_sent_again(served: Lab) -> None:
    before = counters(served.guest)
    hits: list[Hit] = []
    request = "tcp dst port 80 and len > 100"
    with served.rule(f"tcp_v4_rcv = corrupt 3 @1 if {request}", hits.append) as rule:
        got = served.run(["curl", "-4", "-s", "http://guest/etc/services"], timeout_s=20)
    with open("/etc/services") as there:  # noqa: PTH123
        assert got.stdout == there.read()
    assert (rule.fired, rule.unedited, rule.counts.arrived) == (True, 0, 2)
    assert [hit.verdict.split()[0] for hit in hits] == ["corrupt"]
    assert counters(served.guest)["TcpInCsumErrors"] - before["TcpInCsumErrors"] == 1


def test_no_checksum_is_right_by_chance() -> None:
    """Two bytes that are changed by the same amount, up and down, make the same sum."""
    payload = bytes(range(64))
    for seed in range(3000):
        corrupted = corrupting(2, str(seed))(UDP() / Raw(payload))
        assert sum(struct.unpack("!32H", corrupted)) % 0xFFFF != sum(struct.unpack("!32H", payload)) % 0xFFFF


def test_a_corrupted_ping_is_lost(served: Lab) -> None:
    before = counters(served.guest)
    with served.rule("icmp_rcv = corrupt @1 if icmp"):
        assert [reply.icmp_seq for reply in parse_ping(served.run(PING).stdout)] == [2]
    assert counters(served.guest)["IcmpInCsumErrors"] - before["IcmpInCsumErrors"] == 1


@pytest.mark.parametrize(("address", "function"), [("192.168.10.1", "tcp_v4_rcv"), ("[fd00:10::1]", "tcp_v6_rcv")])
def test_a_reset_reaches_both_ends(served: Lab, address: str, function: str) -> None:
    before = counters(served.guest)
    with served.rule(f"{function} = reset @3 if tcp") as rule:  # SYN, ACK, request
        done = served.run(["curl", "-s", "-S", f"http://{address}/etc/services"], timeout_s=20)
    after = counters(served.guest)
    assert "Connection reset by peer" in done.stderr
    assert (rule.fired, rule.unedited, rule.counts.arrived) == (True, 0, 4)  # the request comes again
    assert after["TcpEstabResets"] - before["TcpEstabResets"] == 1
    assert after["TcpOutRsts"] - before["TcpOutRsts"] == 1
    with served.rule("icmp_rcv = reset @1") as rule:
        assert served.run(PING).returncode == 0
    assert rule.unedited == 1


def test_a_packet_without_payload_has_nothing_to_corrupt(served: Lab) -> None:
    with served.rule("tcp_v4_rcv = corrupt @1 if tcp[tcpflags] & tcp-syn != 0") as rule:
        assert served.run(["curl", "-4", "-s", "http://guest/etc/services"], timeout_s=20).returncode == 0
    assert (rule.fired, rule.unedited) == (False, 1)
    assert rule.why_unedited.startswith("no payload to corrupt in this packet")


def test_the_same_bytes_for_a_seed() -> None:
    packet = IP() / UDP() / Raw(bytes(100))
    some = [corrupting(5, seed)(packet) for seed in ("1", "1", "2")]
    assert some[0] == some[1] != some[2]
    assert sum(byte != 0 for byte in some[0]) == 5
    assert all(corrupting(1000, "1")(packet))
    assert bytes(packet[Raw].load) == bytes(100)
    with pytest.raises(PacketError, match="no payload"):
        corrupting(1, "1")(IP() / TCP())


def test_a_rate_in_virtual_time(image: Image) -> None:
    """At 80 kbit a second, 1,000 bytes take 100 ms; three that come at once come one behind the other."""
    ping = ["ping", "-n", "-c", "3", "-l", "3", "-s", "992", "-W", "5", "guest"]
    with Lab(image=image, time="virtual") as lab:
        with lab.rule("icmp_rcv = rate 80kbit if icmp[icmptype] == icmp-echo") as rule:
            rtts = [reply.rtt_ms for reply in parse_ping(lab.run(ping).stdout)]
        assert rtts == pytest.approx([100, 200, 300], abs=1)
        assert (rule.fired, rule.counts.held, rule.counts.expired) == (True, 3, 0)


def test_a_rate_in_real_time(served: Lab) -> None:
    """The third answer comes 300 ms after the first request, or later; a busy ping sends the third request late."""
    ping = ["ping", "-n", "-D", "-c", "3", "-l", "3", "-s", "992", "-W", "5", "guest"]
    began_s = time.time()
    with served.rule("icmp_rcv = rate 80kbit"):
        said = served.run(ping, timeout_s=20).stdout
    answered_s = [float(at_s) - began_s for at_s in re.findall(r"^\[(\d+\.\d+)\] .* icmp_seq=", said, re.MULTILINE)]
    assert [at_s >= least_s for at_s, least_s in zip(answered_s, (0.1, 0.2, 0.3), strict=True)] == [True] * 3


@pytest.mark.parametrize(
    ("text", "bits_per_s", "again"),
    [("1mbit", 10**6, "1mbit"), ("1.5kbit", 1500, "1500bit"), ("64bit", 64, "64bit"), ("2000mbit", 2 * 10**9, "2gbit")],
)
def test_rates(text: str, bits_per_s: int, again: str) -> None:
    rule = Rule.parse(f"icmp_rcv = rate {text} @2")
    assert (rule.bits_per_s, rule.action) == (bits_per_s, f"rate {again}")


@pytest.mark.parametrize("text", ["rate", "rate 0bit", "rate 1", "rate 1Mbit", "rate 9999999gbit", "corrupt 0"])
def test_what_is_no_rate_or_number(text: str) -> None:
    with pytest.raises(RuleError, match=r"rate|how many bytes"):
        Rule.parse(f"icmp_rcv = {text}")


def test_waiting_for_a_rule(shared_lab: Lab) -> None:
    with shared_lab.rule("icmp_rcv = edit icmp.seq=7 if icmp") as rule, shared_lab.rule("ip_rcv = trace") as seen:
        client = shared_lab.popen(PING)
        rule.wait(2)
        seen.wait()
        assert rule.fired
        client.wait(10)
        with pytest.raises(Timeout, match=re.escape("2 of 3 packets within 0.05 s")):
            rule.wait(3, timeout_s=0.05)
    with shared_lab.rule("icmp_rcv = accept") as accepts, pytest.raises(UsageError, match="accepted"):
        accepts.wait()
