"""Commands to redis: what the client gets, what the server has done, and what the kernels at both ends count."""

import subprocess

import pytest

from skblab.testing import LabInTest

REQUEST = "tcp dst port 6379 and tcp[tcpflags] & tcp-push != 0"
REPLY = "tcp src port 6379 and tcp[tcpflags] & tcp-push != 0"

pytestmark = pytest.mark.skblab(
    time="virtual", serve="redis-server --save '' --protected-mode no --tcp-keepalive 30 --hz 1"
)


@pytest.fixture(autouse=True)
def wire(lab: LabInTest) -> None:
    """Take 10 ms each way."""
    lab.rule("ip_rcv = delay 10ms")


def redis(lab: LabInTest, *words: str) -> tuple[str, float]:
    """Return the reply to a command, or the error, and how long that took in seconds."""
    began_s = lab.clock.now
    got = lab.run(["redis-cli", "-h", "guest", *words])
    return (got.stdout or got.stderr).strip(), lab.clock.now - began_s


def in_the_guest(lab: LabInTest, *words: str) -> str:
    """Return the reply to a command that crosses no wire."""
    return lab.guest.run(["redis-cli", *words], check=True).stdout.strip()


def about(seconds: float) -> object:
    """Equal a time, but for the kernel's ticks."""
    return pytest.approx(seconds, abs=0.025)


def test_a_lost_request(lab: LabInTest) -> None:
    """The request is lost. | The reply, a quarter of a second late. | `TcpExtTCPLossProbes` 1 at the client."""
    lab.rule(f"tcp_v4_rcv = drop @1 if {REQUEST}")
    assert redis(lab, "incr", "n") == ("1", about(0.28))
    counted = lab.counters_of("host")
    assert (counted["TcpExtTCPLossProbes"], counted["TcpExtTCPTimeouts"]) == (1, 0)


def test_a_lost_reply(lab: LabInTest) -> None:
    """The reply is lost. | It comes 0.25 s late; redis counts once. | `TcpExtTCPLossProbes` 1 at the server."""
    lab.rule(f"tcp_v4_rcv = drop @1 if {REPLY}")
    assert redis(lab, "incr", "n") == ("1", about(0.28))
    assert in_the_guest(lab, "get", "n") == "1"
    assert (lab.counters["TcpExtTCPLossProbes"], lab.counters["TcpExtTCPTimeouts"]) == (1, 0)


def test_a_doubled_request(lab: LabInTest) -> None:
    """The request comes four times. | One reply; redis counts once. | `TcpExtTCPDSACKOldSent` 3 at the server."""
    lab.rule(f"tcp_v4_rcv = duplicate 3 @1 if {REQUEST}")
    assert redis(lab, "incr", "n") == ("1", about(0.04))
    assert in_the_guest(lab, "get", "n") == "1"
    assert lab.counters["TcpExtTCPDSACKOldSent"] == lab.counters_of("host")["TcpExtTCPDSACKRecv"] == 3


def test_a_corrupted_request(lab: LabInTest) -> None:
    """A byte of the request changes. | The reply, a quarter of a second late. | `TcpInCsumErrors` 1 at the server."""
    lab.rule(f"tcp_v4_rcv = corrupt @1 if {REQUEST}")
    assert redis(lab, "incr", "n") == ("1", about(0.28))
    assert lab.counters["TcpInCsumErrors"] == lab.counters_of("host")["TcpRetransSegs"] == 1


def test_a_reply_that_becomes_a_reset(lab: LabInTest) -> None:
    """The reply becomes a RST. | An error, though redis has counted. | `TcpEstabResets` 1 at the client."""
    lab.rule(f"tcp_v4_rcv = reset @1 if {REPLY}")
    assert redis(lab, "incr", "n") == ("Error: Connection reset by peer", about(0.04))
    assert in_the_guest(lab, "get", "n") == "1"
    assert lab.counters_of("host")["TcpEstabResets"] == 1


def test_a_client_that_vanishes(lab: LabInTest) -> None:
    """The wire to an idle client breaks. | It believes to be connected. | `TcpExtTCPKeepAlive` 3 at the server.

    redis has the kernel ask after 30 s and then every 10 s, three times in all: src/anet.c anetKeepAlive().
    """
    subscribe = "exec 3<>/dev/tcp/guest/6379; echo subscribe news >&3; cat <&3"
    lab.popen(["bash", "-c", subscribe], stdout=subprocess.DEVNULL)
    lab.clock.advance("1s")
    with lab.rule("tcp_v4_rcv = drop if tcp port 6379 and not net 127"):
        lab.clock.advance("100s")
    assert in_the_guest(lab, "pubsub", "numsub", "news") == "news\n0"
    assert (lab.counters["TcpExtTCPKeepAlive"], lab.counters["TcpExtTCPAbortOnTimeout"]) == (3, 1)
    assert lab.counters_of("host")["TcpCurrEstab"] == 1


def test_a_server_that_has_hung_up_unheard(lab: LabInTest) -> None:
    """The server hangs up; no FIN of it arrives. | The next command fails. | `TcpOutRsts` 1: it has forgotten."""
    pipe = subprocess.PIPE
    client = lab.popen(["redis-cli", "-h", "guest"], stdin=pipe, stdout=pipe, stderr=pipe)
    assert client.stdin
    client.stdin.write(b"incr n\n")
    client.stdin.flush()
    lab.clock.advance("1s")
    with lab.rule("tcp_v4_rcv = drop if tcp src port 6379 and tcp[tcpflags] & tcp-fin != 0 and not net 127"):
        in_the_guest(lab, "client", "kill", "type", "normal")
        lab.clock.advance("200s")
    assert client.communicate(b"incr n\n") == (b"1\n", b"Error: Connection reset by peer\n")
    assert in_the_guest(lab, "get", "n") == "1"
    assert lab.counters["TcpOutRsts"] == 1
