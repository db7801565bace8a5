"""Runs that are saved: the same file, the same outcome to the byte; another file, another outcome, which is shown."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

from skblab import LabSpec, Session
from skblab.errors import UsageError
from skblab.host import process
from skblab.image.image import Image
from skblab.saved import SavedRun
from support import skblab

ECHO = "icmp[icmptype] == icmp-echo"
HOLD = f"icmp_rcv = hold if {ECHO}"
PING = ("ping", "-n", "-c5", "-i1", "-W9", "guest")
DECISIONS = (
    '0.2s icmp_rcv = edit raw.load="a, b#" @1',
    "0.25s icmp_rcv = edit ip.ttl=9,icmp.seq=77 fix=False @1",
    "0.3s icmp_rcv = revert @1",
    "1.5s icmp_rcv = duplicate 2 @2",
    "2.1s icmp_rcv:2 = drop @1",
    "2.5s icmp_rcv = release @2",
    "2.5s icmp_rcv = release @1",
    "3.2s icmp_rcv = delay 600ms @4",
    "3.3s filter icmp[6:2] > 100",
    "5.123456789s interrupt",
)  # fmt: skip
RULES = (
    f"icmp_rcv = hold @1-2 if {ECHO}",
    f"icmp_rcv = hold @1 if {ECHO}",
    f"icmp_rcv = hold if {ECHO}",
    "ip_output = trace",
)


def run_of(**fields: object) -> SavedRun:
    return SavedRun(spec=LabSpec(time="virtual", seed=3), client=PING, **fields)  # type: ignore[arg-type]


def test_new_words_on_standard_error_are_a_difference(tmp_path: Path) -> None:
    said = tmp_path / "said"
    said.write_text("")
    run = SavedRun(spec=LabSpec(time="virtual", root="host"), client=("sh", "-c", f"cat {said} >&2")).run()
    assert run.outcome["stderr"] == ""
    said.write_text("assertion failed\n")
    assert "stderr" in [one.what for one in run.differences(run.run())]


LIKE_PING = (
    "import sys, time\nfor at in range(int(sys.argv[1])): print(f'64 bytes: seq={at} time={time.time() % 1:.3f} ms')"
)


def test_times_in_a_long_output_are_not_compared(tmp_path: Path) -> None:
    """Of a long one the file has a digest, in real time one without the times."""
    first = SavedRun(spec=LabSpec(), client=("python3", "-c", LIKE_PING, "200")).run()
    assert "stdout_sha256" in first.outcome
    assert first.differences(first.run()) == []
    other = dataclasses.replace(first, client=("python3", "-c", LIKE_PING, "201")).run()
    assert [one.what for one in first.differences(other)] == ["stdout_sha256"]
    first.write(tmp_path / "test_long.py")
    done = process.run([sys.executable, "-m", "pytest", "-q", tmp_path / "test_long.py"], timeout_s=60)
    assert "1 passed" in done.stdout


def test_an_edit_that_fails_is_an_outcome(tmp_path: Path) -> None:
    file = tmp_path / "a.toml"
    file.write_text(f'client = ["ping", "-c1", "-s0", "guest"]\nrules = ["icmp_rcv = corrupt 2 if {ECHO}"]\n'
                    '[lab]\ntime = "virtual"\n')  # fmt: skip
    done = skblab("replay", str(file))
    assert done.returncode == 1
    assert "unedited: icmp_rcv = corrupt 2" in done.stderr
    with file.open("a") as more:
        more.write("[outcome]\nstatus = 0\n")
    assert skblab("replay", str(file)).returncode == 1


def test_every_decision_comes_again_to_the_byte(tmp_path: Path) -> None:
    decisions = [one.replace("icmp_rcv = delay 600ms @4", "icmp_rcv:3 = delay 600ms @1") for one in DECISIONS]
    first = run_of(rules=RULES, decisions=tuple(decisions)).run()
    assert "undecided" not in first.outcome
    assert first.outcome["went"] == (
        "icmp_rcv:2 @1 dropped", "icmp_rcv @2 released", "icmp_rcv @1 released", "icmp_rcv:3 @1 released",
    )  # fmt: skip
    assert "icmp_seq=2 ttl=64 time=1" in first.outcome["stdout"]
    assert "+2 duplicates" in first.outcome["stdout"]
    first.write(tmp_path / "a.toml")
    read = SavedRun.read(tmp_path / "a.toml")
    assert (read.client, read.rules, read.decisions) == (first.client, first.rules, first.decisions)
    assert read.outcome == first.outcome
    again = read.run()
    assert again.outcome == first.outcome
    assert read.differences(again) == []
    again.write(tmp_path / "b.toml")
    assert (tmp_path / "b.toml").read_bytes() == (tmp_path / "a.toml").read_bytes()
    read.write(tmp_path / "test_it.py")
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:rerunfailures", "test_it.py"]
    done = process.run(argv, cwd=tmp_path, timeout_s=60)
    assert done.returncode == 0, done.stdout


def test_what_cannot_be_decided_is_in_the_outcome() -> None:
    now = run_of(rules=(HOLD,), decisions=("0s icmp_rcv = release @1", "0.5s icmp_rcv = drop @1", "9s interrupt")).run()
    gone, late = now.outcome["undecided"]
    assert gone == "0.5s icmp_rcv = drop @1: cannot drop this packet: it is released"
    assert late.startswith("9s interrupt: ")


def test_the_command_saves_and_replays_and_shows_a_difference(tmp_path: Path, image: Image) -> None:
    path = tmp_path / "lost.toml"
    words = ["--time", "virtual", "-r", f"icmp_rcv = drop @2 if {ECHO}", "--", "ping", "-n", "-c3", "guest"]
    done = skblab("run", "--save", str(path), *words)
    assert done.returncode == 0, done.stderr
    assert "icmp_seq=3" in done.stdout
    done = skblab("replay", str(path))
    assert (done.returncode, done.stderr) == (0, "the outcome is the same: status 0, 3.12001 s\n")
    assert "icmp_seq=3" in done.stdout
    text = path.read_text()
    path.write_text(text.replace("drop @2", "drop @1").replace(image.name, "6.12-default-000000000000"))
    done = skblab("replay", str(path), "--json")
    said = json.loads(done.stdout)
    assert done.returncode == 1
    assert [one["what"] for one in said["differences"]] == ["stdout"]
    assert (said["same"], said["image"], said["saved_image"]) == (False, image.name, "6.12-default-000000000000")
    assert "saved on the image 6.12-default-000000000000, which is not here" in done.stderr
    done = skblab("replay", str(path))
    assert "  - 64 bytes from 192.168.10.1: icmp_seq=1" in done.stderr
    # Without an outcome it is a run like any other.
    path.write_text(text.partition("[outcome]")[0].replace("drop @2", "drop @2000"))
    done = skblab("replay", str(path))
    assert done.returncode == 118
    assert f"icmp_rcv = drop @2000 if {ECHO}: never fired" in done.stderr


@pytest.mark.complains("panic")
def test_a_guest_that_dies_comes_again(tmp_path: Path) -> None:
    path = tmp_path / "dies.toml"
    died = skblab("run", "--time", "virtual", "--save", str(path), "--", "sh", "-c", "echo c > /proc/sysrq-trigger")
    assert died.returncode == 128
    done = skblab("replay", str(path))
    assert done.returncode == 0, done.stderr
    assert "the outcome is the same: the guest kernel is gone" in done.stderr


def test_a_run_that_hangs_is_ended() -> None:
    run = SavedRun(spec=LabSpec(time="virtual"), client=("sleep", "100"), limit_s=2.5)
    assert run.run().outcome == {"end": "it still ran after 2.5 s"}


def test_a_long_run_has_the_time_that_it_takes(tmp_path: Path) -> None:
    with LabSpec(time="virtual").start() as lab:
        with Session(lab) as session:
            session.run(["sleep", "1000"], capture=True)
        session.save(tmp_path / "a.toml")
    saved = SavedRun.read(tmp_path / "a.toml")
    assert saved.differences(saved.run()) == []


def test_only_a_run_that_has_been_is_saved(tmp_path: Path) -> None:
    with (
        LabSpec(time="virtual").start() as lab,
        Session(lab) as session,
        pytest.raises(UsageError, match="no command has run"),
    ):
        session.save(tmp_path / "a.toml")
