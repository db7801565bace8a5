"""Files of saved runs, as people write them: what is written is read again, what is wrong is said with its place."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some

from skblab import LabSpec, toml
from skblab.cli import saving
from skblab.decision import Decision
from skblab.errors import RuleError, SkblabError, UsageError
from skblab.saved import SavedRun, but_for_times
from skblab.scenario import lab_spec, lab_table

TEXTS = some.text(some.characters(codec="utf-8"))


VALUES = (
    TEXTS
    | some.booleans()
    | some.integers(-(1 << 63), (1 << 63) - 1)
    | some.floats(allow_nan=False)
    | some.lists(TEXTS)
    | some.dictionaries(TEXTS, TEXTS)
)


@given(values=some.dictionaries(TEXTS, VALUES))
def test_what_is_written_is_read(values: dict[str, object]) -> None:
    assert tomllib.loads("\n".join(toml.lines(values))) == values


def test_a_text_that_is_not_in_utf_8_is_refused() -> None:
    with pytest.raises(UsageError, match="in UTF-8"):
        toml.lines({"client": ["\udcff"]})


@pytest.mark.parametrize(
    "text",
    [
        "2.5s icmp_rcv = release @1",
        "0s ip_rcv:2 = drop @17",
        "0.000000001s icmp_rcv = delay 300ms @2",
        "1s icmp_rcv = duplicate @2",
        "1s icmp_rcv = duplicate 3 @2",
        '86400s icmp_rcv = edit ip.ttl=3,raw.load="a, b" fix=False @1',
        "3s icmp_rcv = revert @1",
        "4s filter icmp[6:2] >= 8 and host 10.0.0.1",
        "4s filter",
        "5.25s interrupt",
    ],
)
def test_a_decision_is_read_and_written(text: str) -> None:
    assert str(Decision.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "place", "what"),
    [
        ("", 0, "a time is missing"),
        ("soon icmp_rcv = release @1", 0, "not a time: soon"),
        ("2s", 2, "a function with =, interrupt, or filter"),
        ("2s icmp_rcv release @1", 3, "a function with =, interrupt, or filter"),
        ("2s icmp_rcv = vanish @1", 14, "no such decision: vanish"),
        ("2s icmp_rcv = hold @1", 14, "no such decision: hold"),
        ("2s icmp_rcv =", 13, "what is done?"),
        ("2s icmp_rcv = release", 21, "which packet?"),
        ("2s icmp_rcv = release @0", 22, "which packet?"),
        ("2s icmp_rcv = release @1-2", 22, "which packet?"),
        ("2s icmp_rcv = drop NO_SOCKET @1", 19, "which packet?"),
        ("2s icmp_rcv = release @1 if icmp", 25, "not understood here"),
        ("2s icmp_rcv = delay 1s +-1ms @1", 25, "a decision is exact"),
        ("2s icmp_rcv = edit ip.tll=3 @1", 22, "ip has no field tll"),
        ("2s interrupt now", 3, "a function with =, interrupt, or filter"),
    ],
)
def test_a_wrong_decision_has_a_caret(text: str, place: int, what: str) -> None:
    with pytest.raises(RuleError) as error:
        Decision.parse(text)
    assert what in error.value.what
    assert error.value.found == f"{text}\n{' ' * place}^"


GOOD = 'client = ["ping", "-c1", "guest"]\n'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "a run needs a command"),
        ("client = 3", "client is a list of texts"),
        ('client = "it\'s"', "the client is no command"),
        (GOOD + "rules = 'icmp_rcv = drop'", "rules is a list of texts"),
        (GOOD + "rules = ['icmp_rcv = dorp']", "no such verdict: dorp"),
        (GOOD + "decisions = ['2s icmp_rcv = release']", "which packet?"),
        (GOOD + "decision = []", "is it decisions?"),
        (GOOD + "limit_s = -1", "no such time: limit_s=-1"),
        (GOOD.replace("guest", "a\\u0000b"), "a word with a NUL byte"),
        (GOOD + "servers = ['a', 'b']", "a command in the guest needs a root file system"),
        (GOOD + "limit_s = nan", "limit_s is a number"),
        (GOOD + "lab = 3", "lab is no table"),
        (GOOD + "[lab]\nmemory_mb = 3", "is it memory_mib?"),
        (GOOD + "[lab]\nmemory_mib = '3'", "memory_mib is a whole number"),
        (GOOD + "[lab]\ntime = 'fast'", "no such time: fast"),
        (GOOD + "[lab]\ncommands = ['x']", 'servers = ["..."]'),
        (GOOD + "[lab]\nimage = 'no-such'", "no image"),
        (GOOD + "[lab]\nseed = 3", "nodes and a seed are for virtual time"),
        (GOOD + "[outcome]\nstate = 0", "is it status?"),
        (GOOD + "[outcome]\nstatus = true", "status is a whole number"),
        (GOOD + "[outcome\n", "line 2: "),
        (GOOD + "x = " + "[" * 100_000, "is no TOML"),
        (GOOD + "limit_s = 1" + "0" * 5000, "is no TOML"),
        ("client = ['ping\xff']".encode("latin-1").decode("latin-1"), ""),
    ],
)
def test_a_wrong_file_is_one_clear_error(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    if not words:
        assert SavedRun.read(path).client == ("ping\xff",)
        return
    with pytest.raises(SkblabError) as error:
        SavedRun.read(path)
    assert words in str(error.value)
    assert error.value.exit_status in {2, 3}


@pytest.mark.parametrize(
    "spec",
    [
        LabSpec(),
        LabSpec(series="7.3", variant="kasan", link=("lan,tap", "wan,veth"), lease_s=0, clock="frozen"),
        LabSpec(
            time="virtual", seed=(1 << 63) - 1, nodes=("a", "b"), commands=("cd /; exec x 'y'", "udp:z"), most_s=9.5
        ),
        LabSpec(time="virtual", timeout_s=30.0, consoles=1),
        LabSpec(root="/tmp", memory_mib=256, kernel_arguments=("a=b",), consoles=0),
    ],
)
def test_a_guest_is_written_and_read(spec: LabSpec) -> None:
    assert lab_spec("x", tomllib.loads("\n".join(toml.lines(lab_table(spec)))), tuple(spec.commands)) == spec


def test_a_guest_has_the_consoles_of_its_time() -> None:
    assert [(LabSpec(time=time).consoles, LabSpec(time=time, consoles=2).consoles) for time in ("real", "virtual")] == [
        (1, 2),
        (0, 2),
    ]
    assert not any("consoles" in lab_table(LabSpec(time=time)) for time in ("real", "virtual"))
    with pytest.raises(UsageError, match="timeout_s is a number"):
        lab_spec("x", {"time": "virtual", "timeout_s": "long"}, ())


@pytest.mark.parametrize("data", [b"client = ['\xff']", b"\0", b"\x7fELF\x02\x01\x01\0\0"])
def test_a_file_that_is_no_text(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_bytes(data)
    with pytest.raises(UsageError, match=r"a\.toml"):
        SavedRun.read(tmp_path / "a.toml")


def test_what_is_wrong_now_is_a_difference_though_nothing_was_said_of_it() -> None:
    def run(**outcome: object) -> SavedRun:
        return SavedRun(spec=LabSpec(time="virtual"), client=("true",), outcome=outcome)

    assert [one.what for one in run(status=0).differences(run(status=0, undecided=("x",)))] == ["undecided"]
    assert [one.what for one in run(status=0).differences(run(end="it hung"))] == ["end"]
    assert [one.what for one in run(status=0).differences(run(status=0, unedited=("x",)))] == ["unedited"]
    assert run().differences(run(status=1, unfired=("x",))) == []
    short, long = run(stdout="a"), run(stdout_sha256="0" * 64)
    assert [one.what for one in short.differences(long)] == ["stdout"]
    assert [one.what for one in long.differences(short)] == ["stdout_sha256"]


def test_times_in_a_text_are_left_out() -> None:
    def of(ms: str) -> str:
        return (
            f"64 bytes: icmp_seq=1 ttl=64 time={ms} ms\nrtt = {ms}.0/{ms}.1 ms, time {ms}ms, took {ms}s and 3 packets"
        )

    assert but_for_times(of("1203")) == but_for_times(of("7"))
    assert but_for_times("icmp_seq=1 3 packets 10.0.0.1") == "icmp_seq=1 3 packets 10.0.0.1"


def test_the_command_that_does_it_again_can_be_pasted(capsys: pytest.CaptureFixture[str]) -> None:
    saving.tell(Path("a b.toml"))
    saving.tell(Path("test_a.py"))
    assert capsys.readouterr().err == (
        "saved: skblab replay 'a b.toml' does it again\nsaved: pytest test_a.py does it again\n"
    )
