"""A payment in PostgreSQL: what psql says when its connection fails, and whether it has been paid."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.testing import LabInTest

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"))
FROM_CLIENT = "tcp dst port 5432 and tcp[tcpflags] & tcp-push != 0"  # the third one has the query
FROM_SERVER = "tcp src port 5432 and tcp[tcpflags] & tcp-push != 0"  # the third one says that it is done
CLOSED = "server closed the connection unexpectedly"

DATABASE = f"""
    cd /tmp && install -d -o nobody data && exec setpriv --reuid=nobody --clear-groups sh -ec "
        {PROGRAMS}/initdb -D data -U postgres -A trust --no-sync --no-locale --wal-segsize=1 >/dev/null
        echo host all all all trust >>data/pg_hba.conf
        exec {PROGRAMS}/postgres -D data -k /tmp -h '*' -F -c shared_buffers=1MB -c dynamic_shared_memory_type=mmap
    "
"""

pytestmark = pytest.mark.skblab(time="virtual", memory_mib=256, serve=DATABASE)


@pytest.fixture
def lab(shared_lab: LabInTest) -> Iterator[LabInTest]:
    """Share one database, in which nothing has been paid; the wire takes 10 ms each way."""
    in_the_guest(shared_lab, "drop table if exists paid; create table paid (amount int)")
    shared_lab.rule("ip_rcv = delay 10ms")
    yield shared_lab
    shared_lab.clock.advance("10s")  # the next test has no packet of this one


def pay(lab: LabInTest, options: str = "") -> tuple[str, float]:
    """Pay once; return the first line of what psql complains of, and how long that took in seconds."""
    began_s = lab.clock.now
    where = f"host={lab.guest_address} user=postgres {options}"
    got = lab.run(["psql", "-Xq", "-c", "insert into paid values (10)", where])
    return got.stderr.partition("\n")[0], lab.clock.now - began_s


def in_the_guest(lab: LabInTest, sql: str) -> str:
    """Return the answer to a query that crosses no wire."""
    return lab.guest.run(["psql", "-XqAt", "-h", "/tmp", "-U", "postgres", "-c", sql], check=True).stdout.strip()


def times_paid(lab: LabInTest) -> int:
    """Return how often it has been paid."""
    return int(in_the_guest(lab, "select count(*) from paid"))


def about(seconds: float) -> object:
    """Equal a time, but for the kernel's ticks."""
    return pytest.approx(seconds, abs=0.025)


def test_a_query_that_becomes_a_reset(lab: LabInTest) -> None:
    """The query becomes a RST. | An error; nothing is paid. | `TcpEstabResets` 1 at both ends."""
    lab.rule(f"tcp_v4_rcv = reset @3 if {FROM_CLIENT}")
    assert pay(lab) == (CLOSED, about(0.32))
    assert times_paid(lab) == 0
    assert lab.counters["TcpEstabResets"] == lab.counters_of("host")["TcpEstabResets"] == 1


def test_an_answer_that_becomes_a_reset(lab: LabInTest) -> None:
    """The answer becomes a RST. | The same error, though it is paid. | `TcpEstabResets` 1 at the client."""
    lab.rule(f"tcp_v4_rcv = reset @3 if {FROM_SERVER}")
    assert pay(lab) == (CLOSED, about(0.08))
    assert times_paid(lab) == 1
    assert lab.counters_of("host")["TcpEstabResets"] == 1


def test_a_lost_answer(lab: LabInTest) -> None:
    """The answer is lost. | It comes a quarter of a second late; paid once. | `TcpExtTCPLossProbes` 1 at the server."""
    lab.rule(f"tcp_v4_rcv = drop @3 if {FROM_SERVER}")
    assert pay(lab) == ("", about(0.31))
    assert times_paid(lab) == 1
    assert lab.counters["TcpExtTCPLossProbes"] == 1


def test_a_query_that_is_lost_for_ever(lab: LabInTest) -> None:
    """The query is lost, with tcp_user_timeout=2000. | psql gives up, after 2.5 s. | `TcpExtTCPAbortOnTimeout` 1.

    The two seconds begin with the first timeout, after the tail loss probe: net/ipv4/tcp_timer.c
    tcp_clamp_rto_to_user_timeout() counts from tp->retrans_stamp.
    """
    lab.rule(f"tcp_v4_rcv = drop @3- if {FROM_CLIENT}")
    said = "could not receive data from server: Connection timed out"
    assert pay(lab, "tcp_user_timeout=2000") == (said, about(2.55))
    assert times_paid(lab) == 0
    assert lab.counters_of("host")["TcpExtTCPAbortOnTimeout"] == 1


def test_a_server_that_nobody_reaches(lab: LabInTest) -> None:
    """Every SYN is lost, with connect_timeout=3. | psql gives up after three seconds. | `TcpExtTCPSynRetrans` 2."""
    lab.rule("tcp_v4_rcv = drop if tcp dst port 5432 and tcp[tcpflags] & tcp-syn != 0")
    said, took_s = pay(lab, "connect_timeout=3")
    assert said.endswith("port 5432 failed: timeout expired")
    assert took_s == about(3.0)
    assert lab.counters_of("host")["TcpExtTCPSynRetrans"] == 2
