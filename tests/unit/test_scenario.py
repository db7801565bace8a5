"""Scenarios in files: what is read is what was written, and what makes no sense is said where it stands."""

from dataclasses import replace
from pathlib import Path

import pytest

from skblab.errors import CannotWrite, UsageError
from skblab.scenario import digest
from skblab.spec import LabSpec
from skblab.sweep.cell import CellOutcome, Scenario
from skblab.sweep.expect import Expected
from skblab.sweep.judge import unmet
from skblab.sweep.scenario import read, write

WHOLE = """
[lab]
seed = 3
memory_mib = 128

[[scenario]]
name = "one"
client = "sh -c 'echo \\"a b\\"'"
servers = ["./server"]
rules = ["ip_rcv = drop @4 if tcp"]
limit_s = 20
lab = { seed = 7, nodes = ["a"] }

[scenario.expect]
status = 1
stdout = "a\\u001b b"
stderr_has = "no"
duration_s = [0.2, 3]
counters = { "host Tcp RetransSegs" = 1, "guest Udp InErrors" = [0, 2] }
listening = ["guest tcp 80"]
files = { "/tmp/a" = "text", "/tmp/b" = false }

[[scenario]]
name = "two"
client = ["true"]
expect = { status = "any", complaints = true }
"""
ONE = '[[scenario]]\nclient = "true"\n'


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "scenario.toml"


def test_a_file_says_what_python_says(file: Path) -> None:
    file.write_text(WHOLE)
    one, two = read(file)
    assert one == Scenario(
        name="one",
        spec=LabSpec(time="virtual", seed=7, memory_mib=128, nodes=["a"], commands=["./server"]),
        client=("sh", "-c", 'echo "a b"'),
        rules=("ip_rcv = drop @4 if tcp",),
        limit_s=20,
        files=("/tmp/a", "/tmp/b"),
        expected=Expected(
            status=1,
            stdout="a\x1b b",
            stderr_has=("no",),
            duration_s=(0.2, 3),
            counters=(("host Tcp RetransSegs", 1, 1), ("guest Udp InErrors", 0, 2)),
            listening=("guest tcp 80",),
            files=(("/tmp/a", digest("text")), ("/tmp/b", "")),
        ),
    )
    assert (two.spec.seed, two.expected.status, two.expected.complaints) == (3, None, True)


def test_what_is_written_is_read(file: Path, tmp_path: Path) -> None:
    file.write_text(WHOLE)
    scenarios = [replace(one, name=f'{one.name} "\\\x7f\x01\n é \U0001f600 #]') for one in read(file)]
    write(scenarios, tmp_path / "copy.toml", "two\nlines")
    assert read(tmp_path / "copy.toml") == scenarios
    with pytest.raises(CannotWrite):
        write(scenarios, tmp_path / "copy.toml")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[scenario]]\nclient = \n", "line 2.*\n.*client = \n {11}\\^"),
        ("[[scenario]", "no TOML"),
        ("a = " + "[" * 5000, "no TOML"),
        ("", "no scenario"),
        ("scenario = 3", "no scenario"),
        ("scenario = []", "no scenario"),
        ("[labs]\n" + ONE, "no key is called 'labs'(.|\n)*hint: is it lab"),
        ("[[scenario]]\nname = 'x'", "scenario x: a scenario needs a command"),
        ('[[scenario]]\nclient = "sh -c \'a"', "scenario #1: the client is no command"),
        ("[[scenario]]\nclient = [1]", "client is a list of texts"),
        (ONE + "rules = 'ip_rcv = drop'", "rules is a list of texts"),
        (ONE + "rules = ['ip_rcv = drip']", "scenario #1: "),
        (ONE + "limit_s = 0", "no such time: limit_s=0"),
        (ONE + "limit_s = nan", "limit_s is a number"),
        (ONE + "at = []", "no function"),
        (ONE + "lab = { sede = 1 }", "no key is called 'sede'(.|\n)*hint: is it seed"),
        (ONE + "lab = { seed = '1' }", "seed is a whole number"),
        (ONE + "lab = { seed = true }", "seed is a whole number"),
        (ONE + "lab = { seed = -1 }", "no seed: -1"),
        (ONE + "lab = { time = 'real' }", "virtual time"),
        (ONE + "lab = { commands = ['x'] }", "what runs in the guest stands above"),
        (ONE + "lab = { image = 'none' }", "scenario #1: "),
        (ONE + "lab = 3", "lab is no table"),
        (ONE + "files = ['x']", "whole path"),
        (ONE + "expect = { state = 1 }", "no key is called 'state'(.|\n)*hint: is it status"),
        (ONE + "expect = { status = 'x' }", "status is a whole number"),
        (ONE + "expect = { end = 'well' }", "no run ends so: well"),
        (ONE + "expect = { duration_s = [2, 1] }", "nothing is at least 2 and at most 1"),
        (ONE + "expect = { stdout_has = '' }", "an empty text stands in everything"),
        (ONE + "expect = { end = 'hung', stdout_has = 'x' }", "stdout_has is known of a client that has ended"),
        (
            ONE + "expect = { end = 'died', status = 7 }",
            "status is known of a client that has ended, not of one that died",
        ),
        (ONE + "expect = { duration_s = [2] }", "duration_s is a number, or"),
        (ONE + "expect = { counters = { x = 'y' } }", "counter x is a number, or"),
        (ONE + "expect = { stdout_sha256 = 'abc' }", "no SHA-256: abc"),
        (ONE + "expect = { files = { '/x' = 3 } }", "/x: no content of a file"),
        (ONE + "expect = { files = { 'x' = 'y' } }", "whole path: x"),
        (ONE + "name = 'x'\n" + ONE + "name = 'x'", "two scenarios called 'x'"),
    ],
)
def test_what_makes_no_sense_is_said(file: Path, text: str, said: str) -> None:
    file.write_text(text)
    with pytest.raises(UsageError, match=said) as raised:
        read(file)
    assert str(raised.value).startswith(str(file))


def test_a_file_that_cannot_be_read(file: Path) -> None:
    with pytest.raises(UsageError, match="cannot read"):
        read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="cannot read"):
        read(file)


OUTCOME = CellOutcome(
    status=1, duration_s=0.5, stdout="yes", stderr="no", digests=(digest("yes"), digest("no")),
    counters={"host Tcp RetransSegs": 1}, fired=(True, False), files=(("/tmp/a", digest("text"), "text"),),
    listening=("guest tcp 80",),
)  # fmt: skip


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        (Expected(status=None, fired=False), []),
        (Expected(status=1, fired=False, stdout="yes", stderr_sha256=digest("no"), stdout_has=("e", "s")), []),
        (Expected(status=1, fired=False, duration_s=(0.5, 0.5), counters=(("host Tcp RetransSegs", 0, 1),)), []),
        (Expected(status=1, fired=False, files=(("/tmp/a", digest("text")),)), []),
        (Expected(fired=False), ["status 1, not 0"]),
        (Expected(status=1), ["rule 2 never fired"]),
        (Expected(end="hung", fired=False), ["ended, not hung"]),
        (Expected(status=1, fired=False, listening=("guest tcp 80", "guest udp 53")),
         ["nobody listens there any more: guest udp 53"]),
        (Expected(status=1, fired=False, stdout=""), ["stdout is 'yes', not what was expected"]),
        (Expected(status=1, fired=False, stderr_has=("x",)), ["stderr lacks 'x': 'no'"]),
        (Expected(status=1, fired=False, duration_s=(0.6, 1)), ["0.500000 s, not 0.6 to 1 s"]),
        (Expected(status=1, fired=False, counters=(("host Tcp RetransSegs", 0, 0),)),
         ["counter host Tcp RetransSegs: 1, not 0"]),
        (Expected(status=1, fired=False, counters=(("host Tcp Retrans", 0, 0),)),
         ["counter host Tcp Retrans: the kernel does not show it"]),
        (Expected(status=1, fired=False, files=(("/tmp/a", ""),)), ["/tmp/a is 'text', not what was expected"]),
        (Expected(status=1, fired=False, files=(("/tmp/b", digest("")),)), ["/tmp/b is not there"]),
    ],
)  # fmt: skip
def test_what_an_outcome_lacks(expected: Expected, said: list[str]) -> None:
    assert unmet(expected, OUTCOME) == said


def test_an_end_that_was_expected_has_no_status() -> None:
    hung = CellOutcome(end="hung", why="it still ran", status=0)
    assert unmet(Expected(end="hung"), hung) == unmet(Expected(end="hung", status=None), hung) == []
    assert unmet(Expected(), hung) == ["hung, not ended: it still ran"]
    assert unmet(Expected(), replace(hung, end="ended", complaints=("WARNING",))) == ["the kernel complained: WARNING"]
