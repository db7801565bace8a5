"""A name is looked up at dnsmasq: UDP, so it is the resolver that waits and asks again, and the kernel only counts."""

import pytest

from skblab.testing import LabInTest

QUERY, ANSWER = "udp dst port 53", "udp src port 53"
FOUND = "10.1.2.3"

pytestmark = pytest.mark.skblab(
    time="virtual",
    serve=f"udp:dnsmasq --keep-in-foreground --user=root --no-resolv --no-hosts --address=/x.test/{FOUND}",
)


@pytest.fixture(autouse=True)
def wire(lab: LabInTest) -> None:
    """Take 10 ms each way; dnsmasq is the resolver's server."""
    lab.rule("ip_rcv = delay 10ms")
    lab.run(["sh", "-c", f"echo nameserver {lab.guest_address} >/etc/resolv.conf"])


def look_up(lab: LabInTest) -> tuple[str, float]:
    """Return the address that the resolver finds, and how long that took in seconds; then let ten more pass."""
    began_s = lab.clock.now
    got = lab.run(["getent", "ahostsv4", "x.test"])
    took_s = lab.clock.now - began_s
    lab.clock.advance("10s")
    return got.stdout.partition(" ")[0], took_s


def about(seconds: float) -> object:
    """Equal a time, but for the kernel's ticks."""
    return pytest.approx(seconds, abs=0.025)


def test_a_lost_query(lab: LabInTest) -> None:
    """The query is lost. | The address, after five seconds. | `UdpInDatagrams` 1 at the server."""
    lab.rule(f"udp_rcv = drop @1 if {QUERY}")
    assert look_up(lab) == (FOUND, about(5.02))
    assert (lab.counters_of("host")["UdpOutDatagrams"], lab.counters["UdpInDatagrams"]) == (2, 1)


def test_a_corrupted_answer(lab: LabInTest) -> None:
    """A byte of the answer changes. | The right address, after five seconds. | `UdpInCsumErrors` 1 at the client."""
    lab.rule(f"udp_rcv = corrupt @1 if {ANSWER}")
    assert look_up(lab) == (FOUND, about(5.02))
    assert lab.counters_of("host")["UdpInCsumErrors"] == 1
    assert lab.counters["UdpOutDatagrams"] == 2


def test_a_doubled_query(lab: LabInTest) -> None:
    """The query comes twice. | Nothing. | The second answer finds nobody: `UdpNoPorts` 1, and an ICMP error."""
    lab.rule(f"udp_rcv = duplicate @1 if {QUERY}")
    assert look_up(lab) == (FOUND, about(0.02))
    assert lab.counters["UdpOutDatagrams"] == 2
    assert lab.counters_of("host")["UdpNoPorts"] == lab.counters["IcmpInDestUnreachs"] == 1


def test_a_late_answer(lab: LabInTest) -> None:
    """The answer is six seconds late. | That to the second query, after five. | `UdpNoPorts` 1 for the late one."""
    lab.rule(f"udp_rcv = delay 6s @1 if {ANSWER}")
    assert look_up(lab) == (FOUND, about(5.02))
    assert lab.counters_of("host")["UdpNoPorts"] == lab.counters["IcmpInDestUnreachs"] == 1


def test_a_server_that_is_never_heard(lab: LabInTest) -> None:
    """Every answer is lost. | No address, after ten seconds. | `UdpInDatagrams` 2 at the server, 0 at the client."""
    lab.rule(f"udp_rcv = drop if {ANSWER}")
    assert look_up(lab) == ("", about(10.01))
    assert (lab.counters["UdpInDatagrams"], lab.counters_of("host")["UdpInDatagrams"]) == (2, 0)
