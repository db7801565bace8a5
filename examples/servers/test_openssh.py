"""A login with ssh: its bytes are signed, so a forged segment does not get by; and it notices a dead network."""

import pytest

from skblab.testing import LabInTest

FROM_SERVER = "tcp src port 22 and tcp[tcpflags] & tcp-push != 0"
KEY, SERVER_KEY = "/tmp/key", "/tmp/server_key"  # in the guest's memory
SSHD = f"/usr/sbin/sshd -De -oUsePAM=no -oStrictModes=no -oAuthorizedKeysFile={KEY}.pub -oHostKey={SERVER_KEY}"

pytestmark = pytest.mark.skblab(
    time="virtual",
    serve=f"mkdir /run/sshd; for key in {KEY} {SERVER_KEY}; do ssh-keygen -qt ed25519 -N '' -f $key; done; exec {SSHD}",
)


@pytest.fixture(autouse=True)
def wire(lab: LabInTest) -> None:
    """Take 10 ms each way."""
    lab.rule("ip_rcv = delay 10ms")


def ssh(lab: LabInTest, *words: str) -> tuple[str, float]:
    """Return the last line that a command, or ssh, says, and how long that took in seconds."""
    began_s = lab.clock.now
    options = ("-F", "none", "-i", KEY, "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/tmp/known")
    got = lab.run(["ssh", *options, *words])
    return (got.stdout or got.stderr).splitlines()[-1], lab.clock.now - began_s


def about(seconds: float) -> object:
    """Equal a time, but for the kernel's ticks."""
    return pytest.approx(seconds, abs=0.03)


def test_a_lost_segment_of_the_key_exchange(lab: LabInTest) -> None:
    """A segment of the key exchange is lost. | It logs in, 0.25 s late. | `TcpExtTCPLossProbes` 1 at the server."""
    lab.rule(f"tcp_v4_rcv = drop @2 if {FROM_SERVER}")
    assert ssh(lab, "root@guest", "echo hello") == ("hello", about(0.60))
    assert (lab.counters["TcpExtTCPLossProbes"], lab.counters["TcpExtTCPTimeouts"]) == (1, 0)


def test_a_forged_segment(lab: LabInTest) -> None:
    """A segment has other bytes, and the right checksum. | ssh finds out. | No counter: `TcpInCsumErrors` 0."""
    lab.rule(f"tcp_v4_rcv = edit raw.load=abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqr @8 if {FROM_SERVER}")
    said = "ssh_dispatch_run_fatal: Connection to 192.168.10.1 port 22: Connection corrupted"
    assert ssh(lab, "root@guest", "echo hello") == (said, about(0.27))
    assert lab.counters_of("host")["TcpInCsumErrors"] == 0


def test_a_network_that_dies(lab: LabInTest) -> None:
    """The wire breaks during a command. | ssh gives up after two unanswered questions. | `TcpExtTCPTimeouts` 5."""
    lab.rule("tcp_v4_rcv = drop @20- if tcp src port 22")
    alive = ("-oServerAliveInterval=5", "-oServerAliveCountMax=2")
    assert ssh(lab, *alive, "root@guest", "sleep 100") == ("Timeout, server guest not responding.", about(20.0))
    assert lab.counters_of("host")["TcpExtTCPTimeouts"] == 5
