"""The pytest plugin, judged by pytest itself: runs of small test files, each in a process of its own."""

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.image import Image
from skblab.saved import SavedRun
from skblab.spec import LabSpec

ROOT = Path(__file__).resolve().parents[2]
IMPORT_MS = 20
PING = '["ping", "-n", "-c", "2", "-i", "0.1", "-W", "1", "guest"]'


@pytest.fixture
def run(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, image: Image) -> "Run":
    monkeypatch.setenv("SKBLAB_CACHE", str(image.path.parents[1]))  # pytester's HOME is empty
    return Run(pytester)


class Run:
    """Runs one test file."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self._pytester = pytester

    def __call__(self, text: str, *words: str) -> pytest.RunResult:
        self._pytester.makepyfile(text)
        return self._pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:rerunfailures", *words)


def test_importing_it_costs_little() -> None:
    """The median of nine: it is imported by every run of pytest."""
    code = (
        "import sys, time, pytest; began = time.perf_counter(); import skblab.pytest_plugin; "
        "print(time.perf_counter() - began, 'scapy' in sys.modules, 'skblab.lab' in sys.modules)"
    )
    said = [process.run([sys.executable, "-c", code], timeout_s=30).stdout.split() for _ in range(9)]
    assert {tuple(words[1:]) for words in said} == {("False", "False")}
    assert sorted(float(words[0]) for words in said)[4] * 1000 < IMPORT_MS


def test_a_test_that_passes_and_what_a_lab_knows(run: Run) -> None:
    done = run(
        f"""
        import pytest

        @pytest.mark.skblab(root="host", trace="icmp")
        def test_it(lab):
            with lab.rule("icmp_rcv = drop @2 if icmp") as lost:
                said = lab.run({PING}).stdout
            assert "1 received" in said
            assert lost.fired and lost.counts.dropped == 1
            assert lab.counters["IcmpInEchos"] == 1
            assert "Icmp6InMsgs" in lab.counters
            assert (lab.counters_of("host")["IcmpInEchos"], lab.counters_of("host")["IcmpInEchoReps"]) == (0, 1)
            assert len(lab.visited("icmp_rcv")) == 2
            assert not lab.visited("udp_rcv")
            assert len(lab.dropped()) == 1 and not lab.dropped("NO_SOCKET")
            assert lab.journeys()
            assert len(lab.dropped("not_specified")) == len(lab.dropped("SKB_DROP_REASON_NOT_SPECIFIED")) == 1

        def test_rtt(lab):
            assert lab.rtts_ms()[0] < 200
            with lab.rule("icmp_rcv = delay 200ms"):
                assert lab.rtts_ms()[0] >= 200

        @pytest.mark.skblab(series="6.1")
        def test_another_kernel(lab):
            assert lab.image.release.startswith("6.1.")
        """
    )
    done.assert_outcomes(passed=3)


def test_a_rule_that_never_fired_fails_the_test(run: Run) -> None:
    done = run(
        f"""
        import pytest
        from skblab import Session

        def test_unfired(lab):
            with lab.rule("icmp_rcv = drop @2000"):
                assert "2 received" in lab.run({PING}).stdout

        def test_still_in_force(lab):
            lab.rule("icmp_rcv = drop @2000")

        @pytest.mark.skblab(allow_unfired=True)
        def test_allowed(lab):
            with lab.rule("icmp_rcv = drop @2000"):
                pass

        def test_policy(lab):
            lab.on("icmp_rcv", "udp", lambda packet: "drop")

        def test_hold(lab):
            with lab.hold("icmp_rcv", "tcp"):
                lab.run({PING})

        def test_probe(lab):
            with lab.probe("icmp_rcv", "udp") as probe:
                lab.run({PING})
            assert not probe.take_all()

        def test_rule_beside_decisions(lab):
            rules = ["icmp_rcv = hold @1 if icmp", "tcp_v4_rcv = hold"]
            with Session(lab, rules, decisions=["0.1s icmp_rcv = release @1"]) as session:
                session.run({PING})

        def test_policy_that_raises(lab):
            with pytest.raises(Exception):
                with lab.on("icmp_rcv", "icmp", lambda packet: 1 / 0):
                    lab.run({PING})

        def test_policy_that_raises_in_silence(lab):
            lab.on("icmp_rcv", "icmp", lambda packet: 1 / 0)
            lab.run({PING})

        def test_policy_that_is_late(lab):
            went = []

            def drop_all(packet):
                if went:
                    packet.wait(9)
                return went.append(packet) or "drop"

            with lab.on("icmp_rcv", "icmp", drop_all, lease_s=0.2) as policy:
                lab.run({PING})
            assert policy.fired
        """
    )
    outcomes = done.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"]) == (2, 8)
    said = done.stdout.str()
    assert said.count("icmp_rcv = drop @2000: never fired, so this test has not tested what the rule is for") == 2
    assert "icmp_rcv = drop @2000: arrived 2, passed 2" in said
    assert "the policy at icmp_rcv() raised ZeroDivisionError" in said
    for rule in ("icmp_rcv = hold if udp", "icmp_rcv = hold if tcp", "tcp_v4_rcv = hold"):
        assert f"{rule}: never fired" in said
    assert "the policy at icmp_rcv() decided too late about 1 packets" in said


def test_a_decision_that_was_not_carried_out_fails_the_test(run: Run) -> None:
    done = run(
        """
        import pytest
        from skblab import Session

        def decide(lab, *decisions):
            with Session(lab, ["icmp_rcv = hold if icmp[icmptype] == icmp-echo"], decisions=decisions) as session:
                return session.run(["ping", "-c1", "guest"])

        pytestmark = pytest.mark.skblab(time="virtual")

        def test_it(lab):
            assert decide(lab, "0.1s icmp_rcv = release @1", "0.2s icmp_rcv = drop @7").status == 0

        @pytest.mark.skblab(allow_undecided=True)
        def test_allowed(lab):
            assert len(decide(lab, "0.1s icmp_rcv = release @1", "0.2s icmp_rcv = drop @7").undecided) == 1

        def test_carried_out(lab):
            assert decide(lab, "0.1s icmp_rcv = release @1").status == 0
        """
    )
    done.assert_outcomes(passed=2, failed=1)
    done.stdout.fnmatch_lines(["not carried out: 0.2s icmp_rcv = drop @7: *"])


def test_what_a_callback_raised_fails_the_test(run: Run) -> None:
    """Also where nobody has heard of it: the rule was not closed, or another error went first."""
    done = run(
        """
        import pytest

        def fails(_):
            raise ValueError("mine")

        def test_closes_the_lab(lab):
            lab.rule("icmp_rcv = trace if icmp", fails)
            lab.rtts_ms()
            lab.close()

        @pytest.mark.skblab(time="virtual")
        def test_in_a_branch(lab):
            with lab.branch() as branch:
                branch.rule("icmp_rcv = trace if icmp", fails)
                branch.rtts_ms()

        def test_another_error_goes_first(lab):
            with pytest.raises(KeyError), lab.rule("icmp_rcv = trace if icmp", fails):
                raise KeyError(lab.rtts_ms())

        def test_another_goes_before_a_policys(lab):
            with pytest.raises(KeyError), lab.on("icmp_rcv", "icmp", lambda _: None if lab.seen() else fails(_)):
                lab.seen = iter((True, False)).__next__
                raise KeyError(lab.rtts_ms(2))

        def test_leaves_two(shared_lab):
            shared_lab.rule("icmp_rcv = trace if icmp", fails)
            shared_lab.rule("ip_rcv = drop @2- if icmp[icmptype] == icmp-echo")
            shared_lab.run(["ping", "-c2", "-i0.1", "-W1", "guest"])

        def test_finds_none(shared_lab):
            assert shared_lab.rtts_ms()
        """
    )
    outcomes = done.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"]) == (1, 5)
    said = done.stdout.str()
    assert said.count("\nthe callback of icmp_rcv = trace if icmp raised ValueError: mine") == 4
    assert "\nthe callback of the policy at icmp_rcv() raised ValueError: mine" in said


def test_what_a_failure_shows(run: Run, pytester: pytest.Pytester) -> None:
    text = f"""
        import pytest

        @pytest.mark.skblab(root="host")
        def test_fails(lab):
            with lab.rule("icmp_rcv = drop @2 if icmp"):
                assert "2 received" in lab.run({PING}).stdout
        """
    done = run(text)
    done.assert_outcomes(failed=1)
    said = done.stdout.str()
    for title in ("rules", "counters of guest", "counters of host", "console of the guest", "the same again"):
        assert f" skblab: {title} " in said
    assert "icmp_rcv = drop @2 if icmp: arrived 2, passed 1, dropped 1" in said
    assert re.search(r"IcmpInEchos +1$", said, re.MULTILINE)
    (again,) = re.findall(r"^cd (\S+) && pytest (\S+) --skblab-trace$", said, re.MULTILINE)
    assert again == (str(pytester.path), "test_what_a_failure_shows.py::test_fails")
    traced = run(text, again[1], "--skblab-trace", f"--basetemp={pytester.path / 'kept'}")
    traced.assert_outcomes(failed=1)
    said = traced.stdout.str()
    assert re.search(r"icmp_rcv\(\)  drop", said)
    (pcapng,) = re.findall(r"^for Wireshark: (.*)$", said, re.MULTILINE)
    (page,) = re.findall(r"^as a page: +(.*)$", said, re.MULTILINE)
    assert Path(pcapng).read_bytes()[:4] == b"\x0a\x0d\x0d\x0a"
    assert "icmp_rcv" in Path(page).read_text()


def test_what_a_test_holds_does_not_outlive_it(run: Run) -> None:
    done = run(
        f"""
        def test_holds(shared_lab):
            shared_lab.hold("icmp_rcv", "icmp")
            assert "0 received" in shared_lab.run({PING}).stdout

        def test_next(shared_lab):
            assert "2 received" in shared_lab.run({PING}).stdout
        """
    )
    done.assert_outcomes(passed=2)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_a_failure_is_reported_though_its_lab_says_nothing(run: Run, workers: str) -> None:
    """An error in a hook ends the session; with pytest-xdist as if the test had not been."""
    done = run(
        """
        import pytest

        @pytest.mark.skblab(time="virtual")
        def test_leaves_a_branch(lab):
            lab.branch().__enter__()
            raise AssertionError("first reason")

        @pytest.mark.skblab(time="virtual", timeout_s=1)
        def test_computes_for_ever(lab):
            lab.guest.run(["sh", "-c", "while :; do :; done"])

        def test_next():
            pass
        """,
        workers,
    )
    done.assert_outcomes(passed=1, failed=2)
    done.stdout.fnmatch_lines(["*first reason*", "*counters of guest*", "*cannot be read: *"])


def test_a_guest_that_dies_fails_the_test_that_killed_it(run: Run) -> None:
    done = run(
        """
        import pytest

        def test_before(shared_lab):
            assert shared_lab.rtts_ms()

        def test_kills(shared_lab):
            try:
                shared_lab.guest.mconsole.sysrq("c")
            except Exception:
                pass
            shared_lab.popen(["sleep", "0.5"]).wait()

        def test_after(shared_lab):
            assert shared_lab.rtts_ms()
        """
    )
    outcomes = done.parseoutcomes()
    assert (outcomes["passed"], outcomes["failed"], outcomes.get("errors", 0)) == (2, 1, 0)
    said = done.stdout.str()
    assert "test_kills" in said.partition("short test summary")[2]
    assert "sysrq triggered crash" in said
    assert "sysrq_handle_crash()" in said


def test_a_complaint_fails_the_test(run: Run, complains: Callable[[Image], str], image: Image) -> None:
    complaining_module = f"{complains(image)},make=warn"
    done = run(
        f"""
        import pytest

        @pytest.mark.skblab(modules=["{complaining_module}"])
        def test_complains(lab):
            pass

        @pytest.mark.skblab(modules=["{complaining_module}"], allow_complaints=True)
        def test_allowed(lab):
            pass
        """
    )
    done.assert_outcomes(failed=1, passed=1)
    assert "the guest's kernel complained once" in done.stdout.str()


@pytest.mark.complains("warning")
def test_a_saved_run_as_a_test_allows_only_what_it_had(
    tmp_path: Path, complains: Callable[[Image], str], image: Image
) -> None:
    """In real time, where counts are not compared: another rule that does not fire fails it; another complaint, too."""
    first = SavedRun(
        spec=LabSpec(modules=[f"{complains(image)},make=warn"]),
        client=("ping", "-c2", "-i0.1", "guest"),
        rules=("icmp_rcv = trace @2", "udp_rcv = drop", "icmp_rcv = edit ip.ihl=15 @1"),
    ).run()
    assert [len(first.outcome[one]) for one in ("unfired", "unedited", "complaints")] == [1, 1, 1]
    first.write(tmp_path / "test_it.py")
    said = (tmp_path / "test_it.py").read_text()
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:rerunfailures"]
    for name, old, new, is_same in (
        ("same", "", "", True),
        ("unfired", "trace @2", "trace @2000", False),
        ("edited", "edit ip.ihl=15 @1", "trace @1", False),
        ("complaint", "make=warn", "make=warn_text", False),
    ):
        test = tmp_path / f"test_{name}.py"
        test.write_text(said.replace(old, new, 1) if old else said)
        done = process.run([*argv, test], timeout_s=60)
        assert (done.returncode == 0) == is_same, done.stdout


def test_a_shared_lab_begins_anew_for_each_test(run: Run) -> None:
    done = run(
        f"""
        import pytest

        pytestmark = pytest.mark.skblab(root="host", trace=True)
        labs = set()

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(shared_lab, number):
            labs.add(shared_lab.guest.pid)
            shared_lab.rule("icmp_rcv = trace")
            shared_lab.run({PING})
            assert shared_lab.counters["IcmpInEchos"] == 2
            assert len(shared_lab.visited("icmp_echo")) == 2
            assert len(labs) == 1

        @pytest.mark.skblab(memory_mib=96, trace=False)
        def test_of_its_own(shared_lab):
            assert shared_lab.guest.pid not in labs
            assert shared_lab.agent.channel.probes == 0
        """
    )
    done.assert_outcomes(passed=3)


def test_each_image_has_a_shared_lab_of_its_own(run: Run) -> None:
    done = run(
        """
        import pytest
        from skblab.image.store import find_image

        @pytest.fixture(params=["6.1", "6.12", "6.1"])
        def skblab_image(request):
            return find_image(series=request.param)

        @pytest.mark.parametrize("number", [1, 2])
        def test_it(shared_lab, skblab_image, number, pids={}):
            assert shared_lab.image.release == skblab_image.release
            assert pids.setdefault(skblab_image.release, shared_lab.guest.pid) == shared_lab.guest.pid
        """
    )
    done.assert_outcomes(passed=6)


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('rot="host"', "the marker skblab knows no rot"),
        ('root="/none"', "no such directory: /none"),
        ('"host"', "the marker skblab takes keywords"),
        ('allow_unfired="no"', "allow_unfired is True or False, not 'no'"),
        ("counters=0", "counters is True or False, not 0"),
        ('trace=["icmp"]', "no filter: trace=['icmp']"),
        ("serve=80", "no command: serve=80"),
        ('serve="true", commands="true"', "commands is a list, not one string: true"),
    ],
)
def test_a_marker_that_is_wrong(run: Run, marker: str, said: str) -> None:
    done = run(f"import pytest\n@pytest.mark.skblab({marker})\ndef test_it(lab):\n    pass\n")
    done.assert_outcomes(errors=1)
    assert said in done.stdout.str()


def test_the_nearest_marker_wins(run: Run) -> None:
    done = run(
        """
        import pytest

        pytestmark = pytest.mark.skblab(memory_mib=70, trace=True)
        of_case = pytest.mark.skblab(memory_mib=73)

        @pytest.mark.skblab(memory_mib=71, trace=None)
        class TestIt:
            @pytest.mark.skblab(memory_mib=72)
            @pytest.mark.parametrize("expected", [72, pytest.param(73, marks=of_case)])
            def test_case(self, lab, expected):
                assert lab.spec.memory_mib == expected

            def test_class(self, lab):
                assert lab.spec.memory_mib == 71
                with pytest.raises(Exception, match="nothing is traced"):
                    lab.traced
        """
    )
    done.assert_outcomes(passed=3)


def test_what_a_lab_without_counters_or_trace_cannot_say(run: Run) -> None:
    done = run(
        """
        import pytest
        from skblab.errors import UsageError

        @pytest.mark.skblab(counters=False)
        def test_it(lab):
            with pytest.raises(UsageError, match="counters are not read in this test"):
                lab.counters
            with pytest.raises(UsageError, match="nothing is traced"):
                lab.visited("ip_rcv")

        def test_a_guest_without_programs(lab):
            lab.run(["ping", "-c", "2", "-i", "0.01", "guest"])
            assert lab.counters["IcmpInEchos"] == lab.counters_of("host")["IcmpInEchoReps"] == 2

        @pytest.mark.skblab(trace=True)
        def test_a_function_that_no_trace_follows(lab):
            for name in ("ip_recv", "__alloc_skb"):
                with pytest.raises(UsageError, match="no trace follows"):
                    lab.visited(name)
            assert not lab.dropped("NO_SOCKET")
            with pytest.raises(UsageError, match="has no drop reason NO_SOKET") as error:
                lab.dropped("NO_SOKET")
            assert "NO_SOCKET" in error.value.found
        """
    )
    done.assert_outcomes(passed=3)


def test_two_labs_and_one_that_the_test_closes(run: Run) -> None:
    done = run(
        """
        def test_two(lab, shared_lab):
            lab.rule("icmp_rcv = drop @7")
            shared_lab.rule("icmp_rcv = drop @8")

        def test_closes(lab):
            lab.rule("icmp_rcv = drop @9")
            lab.close()

        def test_closes_and_fails(lab):
            lab.rule("icmp_rcv = drop @9")
            lab.close()
            assert False
        """
    )
    outcomes = done.parseoutcomes()
    assert (outcomes["failed"], outcomes.get("errors", 0)) == (3, 0)
    said = done.stdout.str()
    assert said.count("drop @9: never fired") == 1
    assert said.count("drop @7: never fired") == said.count("drop @8: never fired") == 1
    assert "INTERNALERROR" not in said


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_a_held_packet_is_visited_once(run: Run, time: str) -> None:
    done = run(
        f"""
        import pytest

        @pytest.mark.skblab(time={time!r}, trace="icmp")
        @pytest.mark.parametrize("verdict", ["trace", "delay 5ms", "hold 1", "edit icmp.seq=7", "drop", "duplicate"])
        def test_it(lab, verdict):
            with lab.rule(f"icmp_rcv = {{verdict}} if icmp[icmptype] == icmp-echo"):
                lab.run(["ping", "-n", "-c2", "-i0.2", "-W1", "guest"])
            count = 4 if verdict == "duplicate" else 2
            assert len([step for step in lab.visited("icmp_rcv") if step.data[20] == 8]) == count
            assert len(lab.visited("icmp_echo")) == lab.counters["IcmpInEchos"] == count * (verdict != "drop")
        """
    )
    done.assert_outcomes(passed=6)


def test_what_is_dropped_is_of_the_network(run: Run) -> None:
    """The kernel frees a message that nobody has read with a drop reason: SOCKET_CLOSE."""
    done = run(
        """
        import pytest

        @pytest.mark.skblab(time="virtual", trace=True)
        def test_it(lab):
            lab.run(["python3", "-c", "import socket; one, other = socket.socketpair(); one.send(b'?')"])
            assert not lab.dropped()
        """
    )
    done.assert_outcomes(passed=1)


def test_hits_that_were_not_reported_fail_a_test(run: Run) -> None:
    done = run(
        """
        import pytest

        SENDS = "s.sendto(bytes(99), ('192.168.10.1', 9))"
        FLOOD = f"import socket; s = socket.socket(2, 2)\\nfor _ in range(70000): {SENDS}"

        @pytest.mark.skblab(time="virtual")
        @pytest.mark.parametrize("report", [[], [lambda hit: None]], ids=["nobody listens", "a report"])
        def test_it(lab, report):
            with lab.rule("ip_rcv = trace if udp", *report):
                lab.run(["python3", "-c", FLOOD])
        """
    )
    done.assert_outcomes(passed=1, failed=1)
    done.stdout.fnmatch_lines(["*of its hits were not reported: the ring of events was full*"])


def test_a_trace_that_has_lost_steps_does_not_say_what_was_not_there(run: Run) -> None:
    done = run(
        """
        import pytest
        from skblab.errors import TraceError

        @pytest.mark.skblab(trace="icmp")
        def test_it(lab):
            assert lab.rtts_ms()
            assert lab.visited("icmp_rcv") and not lab.dropped()
            lab.traced.end["lost"] = 3
            for ask in (lab.dropped, lab.journeys, lambda: lab.visited("udp_rcv")):
                with pytest.raises(TraceError, match="has lost 3 steps"):
                    ask()
        """
    )
    done.assert_outcomes(passed=1)


def test_side_by_side(run: Run) -> None:
    done = run(
        f"""
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_it(lab, number):
            with lab.rule("icmp_rcv = drop @2 if icmp"):
                assert "1 received" in lab.run({PING}).stdout
        """,
        "-n4",
    )
    done.assert_outcomes(passed=8)


def test_a_server_in_the_guest(run: Run) -> None:
    """The README's test, in real time."""
    done = run(
        """
        import pytest

        @pytest.mark.skblab(root="host", serve="python3 -m http.server -d / 80")
        @pytest.mark.parametrize("which", [2, 2000])
        def test_one_lost_segment(lab, which):
            with lab.rule(f"tcp_v4_rcv = drop @{which} if tcp dst port 80"):
                got = lab.run(["curl", "-4", "-s", "http://guest/etc/services"], timeout_s=30)
            assert got.stdout == open("/etc/services").read()
        """
    )
    done.assert_outcomes(passed=1, failed=1)
    assert "drop @2000 if tcp dst port 80: never fired" in done.stdout.str()


def test_in_virtual_time(run: Run) -> None:
    """A second on the guest's clock; the same on every run; and what Python decides takes no time."""
    done = run(
        """
        import pytest

        @pytest.mark.skblab(root="host", time="virtual", serve="python3 -m http.server -d / 80")
        @pytest.mark.parametrize("which", [2, 2, 2000])
        def test_one_lost_segment(lab, which, counted=[]):
            with lab.rule(f"tcp_v4_rcv = drop @{which} if tcp src port 80 and len > 500"):
                got = lab.run(["curl", "-4", "-s", "http://guest/etc/services"])
            assert got.stdout == open("/etc/services").read()
            if which == 2:
                counted.append(lab.counters.changed())
                assert counted[0] == counted[-1]
                assert lab.counters["TcpRetransSegs"] >= 1

        @pytest.mark.skblab(time="virtual", nodes=["a"])
        def test_counters_of_nodes(shared_lab):
            with shared_lab.guest.popen(["ping", "-c2", "guest"], node="a") as ping:
                assert ping.wait() == 0
            counted = {node: shared_lab.counters_of(node)["IcmpInEchoReps"] for node in ("guest", "host", "a")}
            assert counted == {"guest": 0, "host": 0, "a": 2}
            with pytest.raises(Exception, match="no node is called b"):
                shared_lab.counters_of("b")

        @pytest.mark.skblab(time="virtual")
        def test_policy(lab):
            before = lab.clock.now
            with lab.on("icmp_rcv", "icmp[icmptype] == icmp-echo", lambda packet: "delay 300ms") as policy:
                assert lab.rtts_ms(3) == [300, 300, 300]
            assert (policy.decided, policy.counts.expired) == (3, 0)
            assert lab.clock.now - before < 0.6
        """
    )
    done.assert_outcomes(passed=4, failed=1)
    assert "drop @2000 if tcp src port 80 and len > 500: never fired" in done.stdout.str()


def test_labs_of_tests_that_want_the_same_are_branches_of_one(run: Run) -> None:
    done = run(
        """
        import pytest
        from skblab.errors import GuestLost

        pytestmark = pytest.mark.skblab(root="host", time="virtual", serve="python3 -m http.server 80")
        LOOK = ["sh", "-c", "cat /tmp/mark 2>/dev/null; echo $$; head -c8 /dev/urandom | od -An -x"]
        SAID = []

        @pytest.mark.parametrize("number", range(4))
        def test_begins_where_the_others_begin(lab, number):
            SAID.append(lab.guest.run(LOOK).stdout)
            lab.guest.run(["sh", "-c", "echo mark >/tmp/mark"])
            assert lab.guest.run(LOOK).stdout.startswith("mark")
            assert set(SAID) == {SAID[0]}
            assert "IcmpInEchos" in lab.counters and lab.counters["IcmpInEchos"] == 0
            if number == 2:
                with pytest.raises(GuestLost):
                    lab.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 9"])

        def test_what_a_branch_does(lab):
            lab.run(["ping", "-n", "-c1", "guest"])
            for verdict in ("drop", "delay 1s"):
                with lab.branch() as branch, branch.rule(f"icmp_rcv = {verdict} @1"):
                    assert branch.counters["IcmpInEchos"] == 0
                    branch.run(["ping", "-n", "-c2", "-W1", "guest"])
                    assert branch.counters["IcmpInEchos"] >= 1
            assert lab.counters["IcmpInEchos"] == 1

        def test_a_rule_of_a_branch_never_fires(lab):
            with lab.branch() as branch, branch.rule("icmp_rcv = drop @9"):
                branch.run(["ping", "-n", "-c1", "guest"])

        def test_a_branch_dies(lab):
            with lab.branch() as branch:
                with pytest.raises(GuestLost):
                    branch.run(["sh", "-c", "echo c >/proc/sysrq-trigger; sleep 9"])

        @pytest.mark.skblab(consoles=1)
        def test_with_a_console(lab):
            assert lab.terminal
        """
    )
    done.assert_outcomes(passed=5, failed=3)
    text = done.stdout.str()
    assert "icmp_rcv = drop @9: never fired" in text
    failed = r"^FAILED .*(begins_where_the_others_begin\[2\]|never_fires|a_branch_dies)"
    assert len(re.findall(failed, text, re.MULTILINE)) == 3


def test_in_a_clean_environment_with_only_the_wheel(tmp_path: Path, image: Image) -> None:
    uv, wheels, made = ROOT / ".uv/bin/uv", tmp_path / "wheels", tmp_path / "venv"
    built = process.run([uv, "build", "--quiet", "--wheel", "--out-dir", wheels, ROOT], timeout_s=60)
    assert built.returncode == 0, built.stderr
    (wheel,) = wheels.glob("skblab-*.whl")
    python = made / "bin/python"
    for words in (["venv", str(made)], ["pip", "install", "--python", str(python), f"{wheel}[test]"]):
        more = ["--python", sys.executable] if words[0] == "venv" else []
        done = process.run([uv, *words, "--quiet", *more], timeout_s=100)
        assert done.returncode == 0, done.stderr
    test = tmp_path / "test_it.py"
    test.write_text(
        "import skblab\nfrom skblab.strategies import faults\n\n"
        "def test_it(lab, pytestconfig):\n"
        f"    assert skblab.__file__.startswith({str(made)!r})\n"
        "    assert faults(['icmp_rcv'])\n"
        "    with lab.rule('icmp_rcv = drop @2 if icmp'):\n"
        f"        assert '1 received' in lab.run({PING}).stdout\n\n"
        "def test_unfired(lab):\n"
        "    lab.rule('icmp_rcv = drop @2')\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in {"PYTHONPATH", "VIRTUAL_ENV"}}
    environment["SKBLAB_CACHE"] = str(image.path.parents[1])
    done = process.run([python, "-m", "pytest", "-p", "no:cacheprovider", test], env=environment, timeout_s=100)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "icmp_rcv = drop @2: never fired" in done.stdout
