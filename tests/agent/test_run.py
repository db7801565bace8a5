"""``skblab run``: the four commands of the book, judged by ping's and curl's own output."""

import codecs
import json
import re
import select
import signal
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from skblab.guest.losses import Losses
from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.recipe import SERIES
from support import SKBLAB, Person, read_until, skblab, start_skblab


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.wall_clock
def test_the_second_ping_takes_300_ms(series: str) -> None:
    done = skblab("run", "--series", series, "-r", "icmp_rcv = delay 300ms @2", "--", "ping", "-c3", "-i0.4", "guest")
    assert done.returncode == 0, done.stderr
    rtts = [reply.rtt_ms for reply in parse_ping(done.stdout)]
    assert len(rtts) == 3
    assert rtts[1] == pytest.approx(300, abs=5)
    assert rtts[0] < 5
    assert rtts[2] < 5
    (line,) = [line for line in done.stderr.splitlines() if "delay  " in line]
    assert re.match(r" +\d+\.\d{6}  icmp_rcv +#2 +delay +192\.168\.10\.254 > 192\.168\.10\.1: ICMP echo request", line)
    assert "icmp_rcv = delay 300ms @2: arrived 3, passed 2, held 1, released 1" in done.stderr
    assert "lost: 0" in done.stderr


@pytest.mark.parametrize("series", SERIES)
def test_the_third_ping_and_only_the_third_is_missing(series: str) -> None:
    rule = "ip_rcv = drop if icmp[icmptype] == icmp-echo and icmp[6:2] == 3"
    done = skblab("run", "--time", "virtual", "--series", series, "-r", rule, "--", "ping", "-c5", "guest")
    assert [reply.icmp_seq for reply in parse_ping(done.stdout)] == [1, 2, 4, 5]


@pytest.mark.parametrize("series", SERIES)
def test_the_replies_come_backwards(series: str) -> None:
    rule = "icmp_rcv = hold 8 release reverse if icmp[icmptype] == icmp-echo"
    done = skblab("run", "--time", "virtual", "--series", series, "-r", rule, "--", "ping", "-c8", "guest")
    assert [reply.icmp_seq for reply in parse_ping(done.stdout)] == [8, 7, 6, 5, 4, 3, 2, 1]


@pytest.mark.parametrize("series", SERIES)
def test_curl_succeeds_after_one_retransmission_of_its_syn(series: str) -> None:
    done = skblab(
        "run", "--time", "virtual", "--series", series, "-r", "tcp_v4_rcv = drop @1 if tcp[tcpflags] & tcp-syn != 0",
        "-g", "python3 -m http.server 80",
        "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code} %{time_connect}", "http://guest/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    code, connected_s = done.stdout.split()
    assert code == "200"
    assert 1 <= float(connected_s) < 1.1
    assert "arrived 3, passed 2, dropped 1" in done.stderr  # the second SYN, and the answer on the other node


@pytest.mark.parametrize("series", SERIES)
@pytest.mark.wall_clock
def test_a_stop_shows_the_packet_and_the_way_there(series: str) -> None:
    # By default ping waits for the last answer for a second; with -i0.2 for 0.2 s alone.
    done = skblab("run", "--series", series, "-r", "icmp_rcv = stop @2", "--", "ping", "-c2", "guest")
    assert done.returncode == 0, done.stderr
    assert "ICMP echo request" in done.stderr
    assert "  #0  icmp_rcv()  net/ipv4/icmp.c:" in done.stderr
    (stopped_s,) = re.findall(r"it was stopped for (\d+\.\d{3}) s", done.stderr)
    (rtt_ms,) = (reply.rtt_ms for reply in parse_ping(done.stdout) if reply.icmp_seq == 2)
    assert float(stopped_s) * 1000 == pytest.approx(rtt_ms, abs=50)
    assert "icmp_rcv = stop @2: arrived 2, passed 1, stopped 1" in done.stderr


SCENARIO = """\
# The second request is late, the fourth is lost, the fifth comes twice: the third that no rule before has taken.
ip_rcv = drop @4 if icmp[icmptype] == icmp-echo   # the whole packet
icmp_rcv = delay 150ms @2 if icmp[icmptype] == icmp-echo

icmp_rcv = duplicate @3 if icmp[icmptype] == icmp-echo
"""


def test_a_scenario_is_the_same_on_every_series(tmp_path: Path) -> None:
    (tmp_path / "late-lost-twice.rules").write_text(SCENARIO)
    seen = {}
    for series in SERIES:
        done = skblab(
            "run", "--time", "virtual", "--series", series, "-f", str(tmp_path / "late-lost-twice.rules"),
            "--", "ping", "-n", "-c6", "-W1", "guest",
        )  # fmt: skip
        replies = parse_ping(done.stdout)
        assert [reply.icmp_seq for reply in replies] == [1, 2, 3, 5, 5, 6]
        assert [reply.icmp_seq for reply in replies if reply.rtt_ms > 100] == [2]
        seen[series] = [line for line in done.stderr.splitlines() if ": arrived " in line], done.returncode
    assert len({str(one) for one in seen.values()}) == 1, seen
    counts, _ = seen[SERIES[0]]
    assert counts[0].endswith("arrived 6, passed 5, dropped 1")
    assert counts[2].endswith("arrived 4, passed 3, duplicated 1")


def test_a_fault_in_a_file_of_rules(tmp_path: Path) -> None:
    path = tmp_path / "faulty.rules"
    path.write_text("# fine\nicmp_rcv = trace\nicmp_rcv = hodl\n")
    done = skblab("run", "-f", str(path), "--", "true")
    assert done.returncode == 2
    assert f"{path}:3: " in done.stderr
    assert "icmp_rcv = hodl" in done.stderr
    done = skblab("run", "-f", str(tmp_path / "none"), "--", "true")
    assert "cannot read the rules in" in done.stderr
    path.write_text("icmp_rcv = trace\n", encoding="utf-16")
    done = skblab("run", "-f", str(path), "--", "true")
    assert "it is UTF-16, or no text\n  hint: iconv -f UTF-16 -t UTF-8 " in done.stderr
    path.write_bytes(b"icmp_rcv = trace  # \xe9\n")
    assert "can't decode byte 0xe9" in skblab("run", "-f", str(path), "--", "true").stderr


def test_a_file_of_rules_of_any_editor(tmp_path: Path) -> None:
    path = tmp_path / "windows.rules"
    rules = (
        '# caf\xe9\r\nicmp_rcv = edit raw.load="a, #b" @2 # why\r\n\r\n\tip_rcv =\ttrace if icmp\r\nip_output = trace'
    )
    path.write_bytes(codecs.BOM_UTF8 + rules.encode())
    done = skblab("run", "-f", str(path), "--", "ping", "-n", "-c1", "guest")
    said = [line.partition(": arrived")[0] for line in done.stderr.splitlines() if ": arrived" in line]
    assert said == ['icmp_rcv = edit raw.load="a, #b" @2', "ip_rcv = trace if icmp", "ip_output = trace"]


def test_it_ends_as_its_command_does() -> None:
    assert skblab("run", "--", "sh", "-c", "exit 7").returncode == 7
    assert skblab("run", "--", "sh", "-c", "kill -TERM $$").returncode == 143
    assert skblab("run", "--", "no-such-program").returncode == 127


DEAF = """
import os, signal
signal.signal(signal.SIGINT, lambda *_: os.write(1, b"trapped\\n"))  # print() must not be in the middle of another
os.write(1, b"begun\\n")
while True:
    signal.pause()
"""
TRAPPED = "trap 'echo trapped' INT; echo begun; sleep 1; sleep 1; echo done; exit 5"


def test_ctrl_c_on_a_terminal_is_the_commands() -> None:
    person = Person("run", "--allow-unfired", "-r", "ip_rcv = trace", "--", "sh", "-c", TRAPPED)
    person.reads("begun")
    person.types(b"\x03")
    read = person.reads("lost: 0")
    assert read.count("trapped") == read.count("done") == 1
    assert person.program.wait(20) == 5


def test_the_second_ctrl_c_ends_everything() -> None:
    person = Person("run", "--", sys.executable, "-c", DEAF)
    person.reads("begun")
    person.types(b"\x03")
    person.reads("trapped")
    select.select([], [], [], 0.5)  # two at once are one signal
    person.types(b"\x03")
    person.reads("everything it started is gone")
    assert person.program.wait(20) == 130


def test_a_signal_from_elsewhere_is_passed_on() -> None:
    running = start_skblab("run", "--", "sh", "-c", TRAPPED)
    assert running.stdout
    read_until(running.stdout.fileno(), lambda said: "begun" in said)
    running.send_signal(signal.SIGINT)
    said = process.finish(running, timeout_s=20)
    assert "trapped\ndone\n" in said.stdout
    assert said.returncode == 5


def test_json_lines_stand_apart_from_what_the_client_prints(tmp_path: Path) -> None:
    path = tmp_path / "run.json"
    rules = ("-r", "icmp_rcv = edit icmp.seq=9", "-r", "ip_output = trace")
    shouts = 'ping -n -c1 guest; echo "{"; echo "}" >&2'
    done = skblab("run", "--json", str(path), *rules, "--", "sh", "-c", shouts)
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["event"] for event in events][-3:] == ["rule", "rule", "end"]
    hits = {event["function"]: event for event in events if event["event"] == "hit"}
    assert "icmp.seq: 1 -> 9" in hits["icmp_rcv"]["verdict"]
    assert hits["ip_output"]["verdict"] == "trace"
    assert "seq 9" in hits["ip_output"]["packet"]
    end = {"event": "end", "lost": 0, "link": asdict(Losses()), "status": 0}
    assert events[-1] == end
    assert "icmp_seq=9 " in done.stdout
    assert "ip_output = trace: arrived 1" in done.stderr
    script = f'exec "$@" 3>{path} >/dev/null 2>&1'
    process.run(["sh", "-c", script, "sh", *SKBLAB, "run", "--json", "/dev/fd/3", "--", "echo", "{"], timeout_s=60)
    assert json.loads(path.read_text()) == end
    assert json.loads(skblab("run", "--json", "-", "--", "true").stdout) == end


@pytest.mark.parametrize(("file", "said"), [("/nosuch/x", "No such file"), ("/dev/fd/99", "Bad file descriptor")])
def test_json_lines_that_cannot_be_written(file: str, said: str) -> None:
    for command in ("run", "trace"):
        done = skblab(command, "--json", file, "--", "echo", "ran")
        assert f"cannot write {file}" in done.stderr
        assert said in done.stderr
        assert (done.returncode, done.stdout) == (2, "")


def test_a_result_file_has_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "results.skblab"
    for option in (("-o", str(path)), ("--json", str(path))):
        first = start_skblab("trace", "-q", *option, "icmp", "--", "sh", "-c", "echo begun; exec sleep 100")
        assert first.stdout
        try:
            read_until(first.stdout.fileno(), lambda said: "begun" in said)
            begun = path.read_bytes()
            for words in (("trace", "-q", "-o", str(path), "--", "true"), ("run", "--json", str(path), "--", "true")):
                done = skblab(*words)
                assert f"{path} is being written already" in done.stderr
                assert f"pid {first.pid}: {sys.executable}" in done.stderr
                assert done.returncode == 1
            assert path.read_bytes() == begun
        finally:
            process.end(first)
    assert skblab("run", "--json", str(path), "--", "true").returncode == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-r", "icmp_rcv = dorp"], "no such verdict: dorp"),
        (["-r", "icmp_rcv = drop if foo 3"], "foo is no word of a filter"),
        (["-r", "icmp_rvc = drop"], 'no function "icmp_rvc"'),
        (["-r", "icmp_echo = drop"], "drop is not sound at icmp_echo()"),
        (["-g", "true"], "needs a root file system"),
        (["--root", "host", "-g", "false"], "has ended (status 1) before it listened"),
    ],
)
def test_bad_input_gets_one_clear_error(words: list[str], said: str) -> None:
    done = skblab("run", *words, "--", "true")
    assert done.returncode in {1, 2}
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_iperf3_in_the_guest() -> None:
    done = skblab(
        "run", "--root", "host", "-g", "iperf3 -s", "-r", "tcp_v4_rcv = drop @every 1000",
        "--memory", "128", "--", "iperf3", "-c", "guest", "-t", "2", "-J",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout)["end"]
    assert end["sum_received"]["bytes"] > 1_000_000
    assert end["sum_sent"]["retransmits"] > 0
