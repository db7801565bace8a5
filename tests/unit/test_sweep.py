"""Sweeps without a kernel: which faults there are, what an outcome is beside another, and pools that lose no cell."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cells import deadly, empty, placed, refused
from skblab.errors import CannotWrite, MissingPrerequisite, RuleError, SkblabError, UsageError
from skblab.host import process
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.spec import LabSpec
from skblab.summary import ETH_P_IP, ETH_P_IPV6
from skblab.sweep import junit, page, plan, servers
from skblab.sweep.cell import CellOutcome, Scenario, Seen, parse_counters
from skblab.sweep.cluster import batch_size
from skblab.sweep.judge import differences, judge
from skblab.sweep.pool import Job, Local
from skblab.sweep.store import Store
from skblab.sweep.sweep import Sweep

TCP = Packet(bytes.fromhex("45000029000100004006a5c9c0a80afec0a80a01")
             + bytes.fromhex("1f9000500000000100000002501020001a2b0000") + b"x", ETH_P_IP)  # fmt: skip
UDP = Packet(bytes.fromhex("4500001c000100004011a5ca c0a80afec0a80a01".replace(" ", ""))
             + bytes.fromhex("1f90003500080000"), ETH_P_IP)  # fmt: skip
TCP6 = Packet(bytes.fromhex("6000000000150640") + bytes(32) + TCP.data[20:], ETH_P_IPV6)
THREE = CellOutcome(
    packets=(Seen(0.1, "ip_rcv", TCP), Seen(0.2, "ipv6_rcv", TCP6), Seen(0.3, "ip_rcv", UDP)), fired=(), stdout="yes",
    digests=("a", "b"),
)  # fmt: skip


ONE = Scenario(spec=LabSpec(time="virtual"), client=("client",), directory="/")


@pytest.fixture
def scenario(tmp_path: Path) -> Scenario:
    return Scenario(spec=LabSpec(time="virtual"), client=("client",), directory=str(tmp_path))


@pytest.fixture
def sweep(scenario: Scenario) -> Sweep:
    """Return a sweep that has begun with THREE."""
    one = Sweep(scenario, ("drop", "reorder", "corrupt"))
    one.baseline, one.targets = THREE, plan.targets(THREE)
    one.cells = list(plan.singles(THREE, one.verdicts, scenario))
    return one


LISTENING = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000:0050 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 13 1
   1: 010AA8C0:0050 FE0AA8C0:C30F 01 00000000:00000000 00:00000000 00000000     0        0 14 1
  20: 00000000000000000000000000000000:0035 00000000000000000000000000000000:0000 07 00000000:00000000 00:00000000
  21: 00000000:9C40 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 15 2
"""


def test_where_servers_listen(scenario: Scenario) -> None:
    """Not a socket to which the kernel gave a port: it is a client's."""
    assert servers.parse(LISTENING) == {"tcp 80", "udp 53"}
    two = replace(THREE, listening=("guest tcp 80", "guest udp 53"))
    assert judge(two, replace(two, listening=("guest udp 53",)), scenario).words == "server gone"
    assert judge(two, replace(two, listening=(*two.listening, "guest tcp 81")), scenario).words == "same"


def test_each_packet_with_each_verdict() -> None:
    rules = [str(fault.rule) for (fault,) in plan.singles(THREE, ("drop", "reorder", "corrupt", "delay 3s"), ONE)]
    assert rules == [
        "ip_rcv = drop @1", "ip_rcv = hold 2 release reverse @1-2", "ip_rcv = corrupt @1", "ip_rcv = delay 3s @1",
        "ipv6_rcv = drop @1", "ipv6_rcv = corrupt @1", "ipv6_rcv = delay 3s @1",
        "ip_rcv = drop @2", "ip_rcv = delay 3s @2",
    ]  # fmt: skip
    assert all(str(Rule.parse(rule)) == rule for rule in rules)


def test_a_packet_without_the_field_has_no_such_fault() -> None:
    verdicts = ("reset", "edit udp.sport=7", "edit ipv6.hlim=1,tcp.window=0")
    rules = [str(fault.rule) for (fault,) in plan.singles(THREE, verdicts, ONE)]
    assert rules == [
        "ip_rcv = reset @1", "ipv6_rcv = reset @1", "ipv6_rcv = edit ipv6.hlim=1,tcp.window=0 @1",
        "ip_rcv = edit udp.sport=7 @2",
    ]  # fmt: skip


@pytest.mark.parametrize("verdicts", [("drop", "drop"), ("delay 1s", "trace", "delay 1000ms"), ("reorder", "reorder")])
def test_a_verdict_stands_once(scenario: Scenario, verdicts: tuple[str, ...]) -> None:
    """Its cells would be run once, and missing in the count."""
    with pytest.raises(RuleError, match=f"named twice: {verdicts[-1]}"):
        Sweep(scenario, verdicts)


def test_a_sweep_without_a_cell_tests_nothing(scenario: Scenario, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = replace(THREE, packets=(Seen(0.1, "ip_rcv", UDP), Seen(0.2, "ipv6_rcv", TCP6)))
    monkeypatch.setattr("skblab.sweep.sweep.run_cell", lambda *_: baseline)
    with pytest.raises(SkblabError, match="nothing would be tested"):
        Sweep(scenario, ("reorder",)).begin()
    sweep = Sweep(scenario, ("reorder", "corrupt"))
    sweep.begin()
    assert len(sweep.cells) == 1


def test_the_error_of_a_cell_names_its_scenario(scenario: Scenario) -> None:
    named = replace(scenario, name="a lost ping", spec=LabSpec(time="virtual", seed=7))
    for one, what in ((named, "a lost ping, seed 7: no kernel"), (scenario, "no kernel")):
        with pytest.raises(MissingPrerequisite) as failed:
            list(Local(1, refused)([Job(one)]))
        assert (failed.value.what, failed.value.found, failed.value.hint) == (what, "anywhere", "build one")


@pytest.mark.parametrize(
    ("filtered", "inside", "end"),
    [
        ("tcp or udp", "", " if tcp or udp"),
        ("", "ip_rcv if udp", " inside ip_rcv if udp"),
        ("tcp", "ip_rcv", " if tcp inside ip_rcv"),
    ],
)
def test_a_filter_and_a_call_stand_in_each_rule(filtered: str, inside: str, end: str) -> None:
    faults = list(plan.singles(THREE, plan.VERDICTS, replace(ONE, filter=filtered, inside=inside)))
    assert len(faults) == 12
    assert all(str(fault.rule).endswith(end) for (fault,) in faults)
    with pytest.raises(RuleError, match="a function is missing after inside"):
        replace(ONE, inside="5")


def test_pairs_are_of_two_packets_and_chosen_by_the_seed() -> None:
    alone = list(plan.singles(THREE, ("drop", "duplicate"), ONE))
    pairs = plan.pairs(alone, 5, seed=1)
    assert len(set(pairs)) == 5
    assert all(a.row < b.row for a, b in pairs)
    assert plan.pairs(alone, 5, seed=1) == pairs
    assert plan.pairs(alone, 5, seed=2) != pairs
    assert len(plan.pairs(alone, 1000, seed=1)) == 12


def test_the_rule_of_a_later_packet_stands_first() -> None:
    first, _, last = plan.singles(THREE, ("drop",), ONE)
    assert plan.rules((*first, *last)) == ("ip_rcv = drop @2", "ip_rcv = drop @1")


@pytest.mark.parametrize("verdict", ["drip", "drop @3"])
def test_a_verdict_is_one_of_rules(scenario: Scenario, verdict: str) -> None:
    with pytest.raises(RuleError):
        Sweep(scenario, (verdict,))


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({}, "same", "same"),
        ({"duration_s": 0.2}, "slower", "+0.200 s"),
        ({"stdout": "no", "digests": ("c", "b")}, "output", "other output"),
        ({"status": 3}, "failed", "failed 3"),
        ({"end": "hung"}, "hung", "hung"),
        ({"end": "died"}, "died", "died"),
        ({"complaints": ("WARNING: CPU: 0",)}, "complaint", "complaint"),
        ({"fired": (True, False)}, "unfired", "no such packet"),
        ({"fired": (False,), "unedited": ("ip_rcv = edit tcp.window=1 @3: no field",)}, "unfired", "not edited"),
        (
            {
                "fired": (False,),
                "packets": ((0.1, "ip_rcv", UDP.data.hex(), ETH_P_IP, "edit makes no difference", ""),),
            },
            "unfired",
            "no difference",
        ),
        ({"status": 3, "duration_s": 9, "digests": ("c", "d")}, "failed", "failed 3"),
    ],
)
def test_what_a_fault_changed(scenario: Scenario, change: dict[str, object], kind: str, words: str) -> None:
    outcome = CellOutcome.read({**THREE.fields(), **change})
    judgement = judge(THREE, outcome, scenario)
    assert (judgement.kind, judgement.words) == (kind, words)
    assert judgement.is_bad == (kind in {"output", "failed", "hung", "died", "complaint"})
    assert bool(differences(THREE, outcome)) == (outcome != THREE)


def test_only_what_is_judged_counts(scenario: Scenario) -> None:
    outcome = replace(THREE, digests=("other", "other"), status=1)
    assert judge(THREE, outcome, replace(scenario, judged=("stderr",))).kind == "output"
    assert judge(THREE, replace(outcome, digests=THREE.digests), replace(scenario, judged=("stdout",))).kind == "same"


def test_counters_of_both_nodes() -> None:
    one = "Ip: Forwarding InReceives\nIp: 2 {}\nTcp: MaxConn\nTcp: -1\nIp6InReceives {}\nTcpExt: Pruned\nTcpExt: 0\n"
    assert parse_counters(one.format(5, 6) + one.format(7, 0)) == {
        "host Ip Forwarding": 2, "host Ip InReceives": 5, "host Tcp MaxConn": -1, "host Ip6InReceives": 6,
        "guest Ip Forwarding": 2, "guest Ip InReceives": 7, "guest Tcp MaxConn": -1,
    }  # fmt: skip


def test_a_command_names_an_image_where_the_cache_cannot_be_used(
    scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path / "cache"))
    image = tmp_path / "6.12-own"
    assert f"--image {image} " in replace(scenario, spec=replace(scenario.spec, image=image)).command(())


def test_a_store_has_what_was_done(scenario: Scenario, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path))
    store = Store(scenario, THREE, resume=False)
    store.add(("ip_rcv = drop @1",), replace(THREE, status=1))
    with pytest.raises(CannotWrite, match="being written already"):
        Store(scenario, THREE, resume=True)
    store.close(forget=False)
    with store.path.open("a") as file:
        file.write('{"rules": ["ip_rcv = dr')
    store = Store(scenario, THREE, resume=True)
    assert store.done == {("ip_rcv = drop @1",): replace(THREE, status=1)}
    store.close(forget=False)
    store = Store(scenario, replace(THREE, duration_s=1), resume=True)  # a program has changed
    assert not store.done
    store.close(forget=True)
    assert not store.path.exists()


@pytest.mark.parametrize("changed", ["client.py", "server.py", "other.py"])
def test_what_a_program_did_before_it_was_changed_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    """It may do the same without a fault, and another thing with one."""
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path / "cache"))
    for name in ("client.py", "server.py", "other.py"):
        (tmp_path / name).write_text("1")
    scenario = Scenario(
        spec=LabSpec(time="virtual", commands=[f"exec python3 '{tmp_path}/server.py' 80"]),
        client=("python3", "client.py", "x" * 5000, "a\nb"),
        directory=str(tmp_path),
    )
    store = Store(scenario, THREE, resume=False)
    store.add(("ip_rcv = drop @1",), THREE)
    store.close(forget=False)
    (tmp_path / changed).write_text("2")
    store = Store(scenario, THREE, resume=True)
    assert len(store.done) == (changed == "other.py")
    store.close(forget=True)


def test_a_process_that_dies_loses_no_cell(scenario: Scenario) -> None:
    cells = [Job(scenario, (str(number),)) for number in range(20)]
    cells.insert(3, Job(scenario, ("once",)))
    cells.insert(9, Job(scenario, ("always",)))
    done = dict(Local(2, deadly)(cells))
    assert set(done) == set(cells)
    assert [job.rules for job, outcome in done.items() if outcome.end == "lost"] == [("always",)]


def test_as_many_processes_as_processors_have_one_each(scenario: Scenario) -> None:
    ours = sorted(map(str, os.sched_getaffinity(0)))
    cells = [Job(scenario, (), number) for number in range(100)]
    assert {outcome.stdout for _, outcome in Local(0, placed)(cells)} <= set(ours)
    assert {outcome.stdout for _, outcome in Local(len(ours) + 1, placed)(cells)} == {" ".join(sorted(ours, key=int))}


def test_a_pool_that_is_closed_begins_no_more(scenario: Scenario) -> None:
    running = Local(2, empty)([Job(scenario, (), number) for number in range(10_000)])
    next(running)
    running.close()  # type: ignore[attr-defined] # a generator's
    assert next(running, None) is None


def test_files_of_a_sweep(sweep: Sweep, tmp_path: Path) -> None:
    for at, faults in enumerate(sweep.cells):
        done = replace(THREE, fired=(True,))
        sweep._note(faults, replace(done, status=1, stderr="</script>\x1b[1m") if at == 2 else done)
    assert [plan.rules(one.faults) for one in sweep.bad] == [("ip_rcv = corrupt @1",)]
    junit.write(sweep, tmp_path / "out.xml")
    suite = ET.parse(tmp_path / "out.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == (str(len(sweep.cells)), "1")
    (failure,) = suite.iter("failure")
    assert "-r 'ip_rcv = corrupt" in str(failure.text)
    page.write(sweep, tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text()
    assert text.count("</script>") == 2
    data = text.partition('id="data">')[2].partition("</script>")[0]
    assert [cell["bad"] for cell in json.loads(data)["cells"]].count(True) == 1
    with pytest.raises(CannotWrite):
        page.write(sweep, tmp_path / "out.html")


def test_no_scenario_without_a_function(scenario: Scenario) -> None:
    with pytest.raises(UsageError, match="no function"):
        replace(scenario, at=())


@pytest.mark.parametrize(
    ("cells", "threads", "size"),
    [(1, 2, 1), (20, 2, 1), (64, 2, 4), (1000, 2, 16), (1000, 0, 16), (1_000_000, 200, 16)],
)
def test_all_workers_have_work_to_the_end(cells: int, threads: int, size: int) -> None:
    assert batch_size(cells, threads) == size


def test_a_script_that_its_own_processes_run_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from skblab.spec import LabSpec\nfrom skblab.sweep.cell import Scenario\n"
        "from skblab.sweep.pool import Job, Local\n"
        "scenario = Scenario(spec=LabSpec(time='virtual'), client=('true',))\n"
        "for job, outcome in Local()([Job(scenario, (), number) for number in range(9)]):\n    print(outcome.end)\n"
    )
    done = process.run([sys.executable, script], timeout_s=60)
    assert done.returncode == 1
    assert "no process that runs cells begins" in done.stderr
    assert "if __name__ == '__main__'" in done.stderr
