"""A download from nginx. What is wrong on the wire, what curl sees of it, and what the kernels at both ends count."""

import itertools
import subprocess
from pathlib import Path

import pytest

from skblab.testing import LabInTest

PAGE = Path("/usr/share/common-licenses/GPL-3")  # 25 segments
SYN = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn"
SYN_ACK = "tcp[tcpflags] & (tcp-syn|tcp-ack) == (tcp-syn|tcp-ack)"
DATA = "tcp src port 80 and len > 500"
FIN = "tcp src port 80 and tcp[tcpflags] & tcp-fin != 0"

pytestmark = pytest.mark.skblab(time="virtual", serve=f"nginx -c {Path(__file__).parent}/nginx.conf")


@pytest.fixture(autouse=True)
def wire(lab: LabInTest) -> None:
    """Take 10 ms each way."""
    lab.rule("ip_rcv = delay 10ms")


def download(lab: LabInTest, *options: str) -> tuple[bool, float]:
    """Return whether curl got the page, whole, and how long that took in seconds; then let a second pass."""
    began_s = lab.clock.now
    got = lab.run(["curl", "-4", "-s", *options, f"http://guest{PAGE}"])
    took_s = lab.clock.now - began_s
    lab.clock.advance("1s")
    return got.stdout == PAGE.read_text(), took_s


def about(seconds: float) -> object:
    """Equal a time, but for the kernel's ticks, of which a timer may be one or two late."""
    return pytest.approx(seconds, abs=0.025)


def test_untouched(lab: LabInTest) -> None:
    """Nothing is wrong. | The page, after three round trips. | No retransmission."""
    assert download(lab) == (True, about(0.060))
    assert lab.counters["TcpRetransSegs"] == 0


def test_a_lost_syn(lab: LabInTest) -> None:
    """The SYN is lost. | It connects a second later. | `TcpExtTCPSynRetrans` 1 at the client."""
    lab.rule(f"tcp_v4_rcv = drop @1 if {SYN}")
    assert download(lab) == (True, about(1.14))
    assert lab.counters_of("host")["TcpExtTCPSynRetrans"] == 1
    assert lab.counters["TcpPassiveOpens"] == 1


def test_three_lost_syns(lab: LabInTest) -> None:
    """Three SYNs are lost. | Three seconds, not 1 + 2 + 4. | `TcpExtTCPSynRetrans` 3 at the client.

    Since Linux 6.5 the first four timeouts are a second each: net/ipv4/tcp_timer.c tcp_retransmit_timer(),
    net.ipv4.tcp_syn_linear_timeouts.
    """
    lab.rule(f"tcp_v4_rcv = drop @1-3 if {SYN}")
    assert download(lab) == (True, about(3.22))
    assert lab.counters_of("host")["TcpExtTCPSynRetrans"] == 3


def test_a_lost_syn_ack(lab: LabInTest) -> None:
    """The SYN-ACK is lost. | It connects a second later. | `TcpExtTCPSynRetrans` 1 at the client, 2 at the server.

    Both ends' timers run out: the server sends its SYN-ACK again of itself, and once more in answer to the second SYN.
    """
    lab.rule(f"tcp_v4_rcv = drop @1 if {SYN_ACK}")
    assert download(lab) == (True, about(1.19))
    assert lab.counters_of("host")["TcpExtTCPSynRetrans"] == 1
    assert lab.counters["TcpExtTCPSynRetrans"] == 2


def test_a_lost_segment(lab: LabInTest) -> None:
    """A segment is lost; ten follow. | One round trip more. | `TcpExtTCPSackRecovery` 1, `TcpExtTCPFastRetrans` 1."""
    lab.rule(f"tcp_v4_rcv = drop @15 if {DATA}")
    assert download(lab) == (True, about(0.080))
    for name in ("TcpRetransSegs", "TcpExtTCPFastRetrans", "TcpExtTCPSackRecovery"):
        assert lab.counters[name] == 1
    assert lab.counters["TcpExtTCPTimeouts"] == 0
    assert lab.counters_of("host")["TcpExtTCPOFOQueue"] == 10


def test_three_duplicate_acks(lab: LabInTest) -> None:
    """The same without SACK: the third duplicate ACK tells. | One round trip more. | `TcpExtTCPRenoRecovery` 1."""
    lab.guest.run(["sysctl", "-qw", "net.ipv4.tcp_sack=0"], check=True)
    lab.rule(f"tcp_v4_rcv = drop @22 if {DATA}")  # the last one that three follow
    assert download(lab) == (True, about(0.080))
    assert (lab.counters["TcpExtTCPRenoRecovery"], lab.counters["TcpExtTCPSackRecovery"]) == (1, 0)
    assert lab.counters["TcpExtTCPTimeouts"] == 0


def test_two_duplicate_acks(lab: LabInTest) -> None:
    """Only two segments follow the lost one. | 20 ms more than with three. | `TcpExtTCPSackRecovery` 1, no timeout.

    RACK needs no third one, but waits a quarter of an RTT for segments out of order: net/ipv4/tcp_recovery.c
    tcp_rack_reo_timeout(). The tick of the kernel's timers makes it 20 ms.
    """
    lab.rule(f"tcp_v4_rcv = drop @23 if {DATA}")
    assert download(lab) == (True, about(0.10))
    assert (lab.counters["TcpExtTCPSackRecovery"], lab.counters["TcpExtTCPTimeouts"]) == (1, 0)


def test_a_lost_tail(lab: LabInTest) -> None:
    """The last segment is lost. | 0.26 s more, less than an RTO. | `TcpExtTCPLossProbes` 1, no timeout."""
    lab.rule(f"tcp_v4_rcv = drop @25 if {DATA}")
    assert download(lab) == (True, about(0.32))
    assert (lab.counters["TcpExtTCPLossProbes"], lab.counters["TcpExtTCPTimeouts"]) == (1, 0)


def test_the_rto_doubles(lab: LabInTest) -> None:
    """The last segment is lost five times. | Four seconds more. | `TcpExtTCPTimeouts` 4: 0.24, 0.47, 0.94 s apart."""
    lost_ns: list[int] = []
    lab.rule(f"tcp_v4_rcv = drop @25-29 if {DATA}", lambda hit: lost_ns.append(hit.at_ns))
    assert download(lab) == (True, about(3.89))
    waits_s = [(after - before) / 1e9 for before, after in itertools.pairwise(lost_ns)]
    assert waits_s == [about(0.26), about(0.24), about(0.47), about(0.94)]  # the first one is a tail loss probe
    assert lab.counters["TcpExtTCPTimeouts"] == 4


def test_a_doubled_segment(lab: LabInTest) -> None:
    """A segment comes twice. | Nothing. | `TcpExtTCPDSACKOldSent` 1 at the client, `TcpExtTCPDSACKRecv` 1."""
    lab.rule(f"tcp_v4_rcv = duplicate @15 if {DATA}")
    assert download(lab) == (True, about(0.060))
    assert lab.counters_of("host")["TcpExtTCPDSACKOldSent"] == lab.counters["TcpExtTCPDSACKRecv"] == 1
    assert lab.counters["TcpRetransSegs"] == 0


def test_a_reordered_segment(lab: LabInTest) -> None:
    """The last but one comes last. | Nothing. | `TcpExtTCPSACKReorder` 1, no retransmission."""
    lab.rule(f"tcp_v4_rcv = delay 1ms @24 if {DATA}")
    assert download(lab) == (True, about(0.061))
    assert (lab.counters["TcpExtTCPSACKReorder"], lab.counters["TcpRetransSegs"]) == (1, 0)
    assert lab.counters_of("host")["TcpExtTCPOFOQueue"] == 1


def test_a_segment_that_ten_overtake(lab: LabInTest) -> None:
    """A segment is 5 ms late; ten overtake it. | 5 ms more. | Sent again, and taken back: `TcpExtTCPFullUndo` 1.

    Its ACK has the time stamp of the first transmission: net/ipv4/tcp_input.c tcp_packet_delayed() (RFC 3522).
    """
    lab.rule(f"tcp_v4_rcv = delay 5ms @15 if {DATA}")
    assert download(lab) == (True, about(0.065))
    assert (lab.counters["TcpExtTCPFastRetrans"], lab.counters["TcpExtTCPFullUndo"]) == (1, 1)


def test_a_segment_that_its_copy_overtakes(lab: LabInTest) -> None:
    """A segment comes after its retransmission. | One round trip more. | A DSACK says so: `TcpExtTCPDSACKUndo` 1."""
    lab.rule(f"tcp_v4_rcv = delay 25ms @15 if {DATA}")
    assert download(lab) == (True, about(0.080))
    assert (lab.counters["TcpExtTCPFastRetrans"], lab.counters["TcpExtTCPDSACKUndo"]) == (1, 1)
    assert lab.counters_of("host")["TcpExtPAWSEstab"] == 1  # its time stamp is older than the copy's


def test_a_corrupted_segment(lab: LabInTest) -> None:
    """Two bytes of a segment change. | The right page, one round trip later. | `TcpInCsumErrors` 1 at the client."""
    lab.rule(f"tcp_v4_rcv = corrupt 2 @15 if {DATA}")
    assert download(lab) == (True, about(0.080))
    assert lab.counters_of("host")["TcpInCsumErrors"] == 1
    assert lab.counters["TcpExtTCPFastRetrans"] == 1


def test_a_reset_in_the_middle(lab: LabInTest) -> None:
    """A segment becomes a RST. | A part of the page, and an error. | `TcpEstabResets` 1 at both ends."""
    lab.rule(f"tcp_v4_rcv = reset @15 if {DATA}")
    got = lab.run(["curl", "-4", "-sS", f"http://guest{PAGE}"])
    assert (got.returncode, got.stderr) == (56, "curl: (56) Recv failure: Connection reset by peer\n")
    assert got.stdout
    assert PAGE.read_text().startswith(got.stdout)
    lab.clock.advance("1s")
    assert lab.counters["TcpEstabResets"] == lab.counters_of("host")["TcpEstabResets"] == 1


def test_a_path_with_a_small_mtu_that_says_nothing(lab: LabInTest) -> None:
    """Packets of more than 1000 bytes vanish. | Nothing, until curl gives up. | `TcpExtTCPTimeouts` 5 by then."""
    lab.rule(f"tcp_v4_rcv = drop if {DATA} and len > 1000")
    assert download(lab, "-m", "10") == (False, about(10.0))
    assert lab.counters["TcpExtTCPTimeouts"] == 5


def test_a_sender_that_finds_the_small_mtu_out(lab: LabInTest) -> None:
    """The same with net.ipv4.tcp_mtu_probing=1. | The page, after 7.7 s. | `TcpExtTCPTimeouts` 5, then small segments.

    After net.ipv4.tcp_retries1 timeouts TCP halves its segments: net/ipv4/tcp_timer.c tcp_mtu_probing().
    """
    lab.guest.run(["sysctl", "-qw", "net.ipv4.tcp_mtu_probing=1"], check=True)
    lab.rule(f"tcp_v4_rcv = drop if {DATA} and len > 1000")
    assert download(lab) == (True, about(7.71))
    assert lab.counters["TcpExtTCPTimeouts"] == 5


def test_a_lost_fin(lab: LabInTest) -> None:
    """The server's FIN is lost. | The end of the page comes 0.25 s late. | `TcpExtTCPLossProbes` 1."""
    lab.rule(f"tcp_v4_rcv = drop @1 if {FIN}")
    assert download(lab, "--http1.0", "--ignore-content-length") == (True, about(0.31))
    assert (lab.counters["TcpExtTCPLossProbes"], lab.counters["TcpExtTCPTimeouts"]) == (1, 0)


def test_a_lost_window_update(lab: LabInTest) -> None:
    """The client's window was full; that it opens is lost. | All of it, 3 s later. | `TcpExtTCPWinProbe` asks for it.

    net/ipv4/tcp_timer.c tcp_probe_timer(): the server asks after 0.2, 0.4, 0.8 s ..., as long as the window is zero.
    """
    ask = r"exec 3<>/dev/tcp/guest/80; printf 'GET /bin/bash HTTP/1.0\r\n\r\n' >&3"
    client = lab.popen(["bash", "-c", f"{ask}; sleep 5; wc -c <&3"], stdout=subprocess.PIPE)
    lab.clock.advance("4.5s")
    assert lab.counters_of("host")["TcpExtTCPToZeroWindowAdv"] == 1
    lab.rule("tcp_v4_rcv = drop @1-2 if tcp dst port 80 and tcp[14:2] > 0")
    began_s = lab.clock.now
    assert int(client.communicate()[0]) > Path("/bin/bash").stat().st_size
    assert lab.clock.now - began_s == about(3.65)
    assert lab.counters["TcpExtTCPWinProbe"] == 5
