"""A cell: what its faults do, and that it has the same outcome every time."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from skblab.errors import UsageError
from skblab.image.image import Image
from skblab.session import Session
from skblab.spec import LabSpec
from skblab.sweep.cell import CellOutcome, Scenario, run_cell
from skblab.sweep.pool import Job, Local

FETCH = ("curl", "-sf", "http://guest/etc/services")
SERVE = "python3 -m http.server 80"
NOT_THERE = ("curl", "-s", "http://192.168.10.98/")


@pytest.fixture(scope="module")
def fetching(image: Image) -> Scenario:
    return Scenario(spec=LabSpec(image=image, time="virtual", seed=7, commands=[SERVE]), client=FETCH)


@pytest.fixture(scope="module")
def baseline(fetching: Scenario) -> CellOutcome:
    return run_cell(fetching)


def request(baseline: CellOutcome) -> int:
    """Return the occurrence of the client's request."""
    return next(at for at, one in enumerate(baseline.packets, 1) if "length 81" in one.summary)


def test_a_cell_without_a_fault(fetching: Scenario, baseline: CellOutcome) -> None:
    assert (baseline.end, baseline.status, baseline.complaints) == ("ended", 0, ())
    assert baseline.stdout == Path("/etc/services").read_text()
    assert "[S]" in baseline.packets[0].summary
    assert baseline.counters["host Tcp ActiveOpens"] == baseline.counters["guest Tcp PassiveOpens"] == 1
    assert "host Tcp RetransSegs" not in baseline.counters
    assert run_cell(fetching) == baseline


def test_a_lost_request_is_sent_again(fetching: Scenario, baseline: CellOutcome) -> None:
    rule = f"ip_rcv = drop @{request(baseline)}"
    outcome = run_cell(fetching, [rule])
    assert outcome.fired == (True,)
    assert outcome.digests == baseline.digests
    assert outcome.duration_s == pytest.approx(0.2, abs=0.05)  # the least RTO: include/net/tcp.h TCP_RTO_MIN
    assert outcome.counters["host Tcp RetransSegs"] == 1
    assert [one.verdict for one in outcome.packets].count("drop") == 1
    assert run_cell(fetching, [rule]) == outcome


@pytest.mark.parametrize("fault", ["delay 300ms @{}", "hold 2 release reverse @{}-{}"])
def test_tcp_sends_again_what_is_held(fetching: Scenario, baseline: CellOutcome, fault: str) -> None:
    """What is on its way is not in the sender's queue, or TCP would wait for it (skb_still_in_host_queue())."""
    at = request(baseline)
    outcome = run_cell(fetching, [f"ip_rcv = {fault.format(at, at + 1)}"])
    assert outcome.fired == (True,)
    assert outcome.duration_s == pytest.approx(0.2, abs=0.05)
    assert outcome.digests == baseline.digests


def test_a_packet_that_waits_for_a_next_one_was_held(fetching: Scenario, baseline: CellOutcome) -> None:
    """The server's last ACK answers the client's FIN, which is held for it; the client has ended by then."""
    last = len(baseline.packets)
    outcome = run_cell(fetching, [f"ip_rcv = hold 2 release reverse @{last - 1}-{last}"])
    assert outcome.fired == (True,)
    assert outcome.digests == baseline.digests


def test_a_rule_ends_when_its_edits_are_done(fetching: Scenario, baseline: CellOutcome) -> None:
    """The client does not wait for the server's FIN, and ends while that is held."""
    at = next(at for at, one in enumerate(baseline.packets, 1) if "[F.]" in one.summary)
    outcome = run_cell(fetching, [f"ip_rcv = edit tcp.chksum=0x1234 fix=False @{at}"])
    assert outcome.fired == (True,)
    assert outcome.status == 0
    edited = next(one for one in outcome.packets if one.verdict)
    assert edited.verdict.startswith("edit tcp.chksum")


def test_a_client_that_never_ends_hangs(image: Image) -> None:
    outcome = run_cell(Scenario(spec=LabSpec(image=image, time="virtual"), client=("sleep", "1d"), limit_s=1000))
    assert outcome.end == "hung"
    assert outcome.why == "it still ran after 1000 s"


@pytest.mark.complains("panic", "oops", "bug")
def test_a_cell_that_kills_its_kernel_is_an_outcome(image: Image) -> None:
    crash = ("sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger")
    outcome = run_cell(Scenario(spec=LabSpec(image=image, time="virtual"), client=crash))
    assert outcome.end == "died"
    assert "panic" in " ".join(outcome.complaints)


def test_an_outcome_of_json_is_the_same(baseline: CellOutcome) -> None:
    assert CellOutcome.read(baseline.fields()) == baseline


def test_the_line_that_repeats_a_cell(fetching: Scenario) -> None:
    assert fetching.command(["ip_rcv = drop @3"]).endswith(
        f"--seed 7 --root host -g '{SERVE}' -r 'ip_rcv = drop @3' -- curl -sf http://guest/etc/services"
    )


def test_the_line_that_repeats_a_cell_has_its_limits(fetching: Scenario) -> None:
    """With another lease, a held packet goes on at another time."""
    spec = replace(fetching.spec, memory_mib=128, lease_s=2.5, most_s=90, timeout_s=30)
    line = replace(fetching, spec=spec).command(["ip_rcv = hold @3"])
    assert "--memory 128 --lease 2.5 --most 90 --timeout 30 " in line


def test_a_cell_is_in_virtual_time() -> None:
    with pytest.raises(UsageError, match="virtual time"):
        Scenario(spec=LabSpec(), client=FETCH)
    with pytest.raises(UsageError, match="needs a command"):
        Scenario(spec=LabSpec(time="virtual"), client=())
    with pytest.raises(UsageError, match="called time"):
        Scenario(spec=LabSpec(time="virtual"), client=FETCH, judged=("time",))


def test_a_command_has_its_directory(image: Image, tmp_path: Path) -> None:
    with LabSpec(image=image, time="virtual").start() as lab, Session(lab) as session:
        assert session.run(["pwd"], capture=True, directory=str(tmp_path)).output[0].strip() == str(tmp_path)
    with LabSpec(image=image).start() as lab, Session(lab) as session:
        assert session.run(["pwd"], capture=True, directory=str(tmp_path)).output[0].strip() == str(tmp_path)


def test_a_cell_is_the_same_in_another_process(fetching: Scenario, baseline: CellOutcome) -> None:
    """Whatever else is open there, and wherever the image is."""
    with open_files(20):
        ((_, there),) = Local(1)([Job(fetching)])
        assert there == baseline == run_cell(fetching)


@contextlib.contextmanager
def open_files(count: int) -> Iterator[None]:
    files = [os.open("/dev/null", os.O_RDONLY) for _ in range(count)]
    yield
    for one in files:
        os.close(one)
