"""What a person does on the screen is saved, comes again by ``skblab replay``, and is a test that passes."""

import asyncio
import sys
import tomllib
from pathlib import Path

import pytest

from skblab.host import process
from skblab.lab import Lab
from skblab.tui.saving import saved
from support import SKBLAB, eventually_nothing, remains, skblab
from tui.screen import Person, ping, screen
from tui.tmux import Tmux

ECHO = "icmp_rcv if icmp[icmptype] == icmp-echo"


def passed(path: Path) -> str:
    """Run a test file with pytest; return what it printed."""
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:rerunfailures", str(path)]
    done = process.run(argv, cwd=path.parent, timeout_s=60)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_hold_edit_and_release_two_in_reverse_are_saved_replayed_and_equal(tmp_path: Path) -> None:
    before, path = remains(), tmp_path / "hand.toml"
    words = ["hold", "--save", str(path), "-r", f"'{ECHO}'", "--", "ping", "-n", "-c2", "-i0.2", "-W60", "guest"]
    tmux = Tmux(str(tmp_path), 100, 40, *SKBLAB, *words)
    tmux.shows(r"2 +\d+\.\d s +icmp_rcv +ICMP echo request, id \d+, seq 2 ")
    tmux.types("e")
    tmux.shows("edit #1 in icmp_rcv")
    tmux.types("BTab")
    tmux.shows(r"raw.load = \S.*01234567")
    tmux.types("C-e")
    tmux.types("BSpace")
    tmux.shows(r"raw.load = \S.*0123456 ")
    tmux.types("Z")
    tmux.shows(r"raw.load = \S.*0123456Z ")
    tmux.types("Enter")
    tmux.shows("-- #1 raw.load")
    tmux.types("v")
    tmux.shows(r"2 received.*rtt min")
    tmux.types("q")
    tmux.shows("saved: skblab replay .*status 0")
    tmux.close()
    text = path.read_text()
    file = tomllib.loads(text)
    assert file["rules"] == ["icmp_rcv = hold if icmp[icmptype] == icmp-echo"]
    assert [line.split(" ", 1)[1].split("raw")[0] for line in file["decisions"]] == [
        "icmp_rcv = edit ", "icmp_rcv = release @2", "icmp_rcv = release @1",
    ]  # fmt: skip
    assert "wrong data byte #55 should be 0x37 but was 0x5a" in file["outcome"]["stdout"]
    assert file["outcome"]["went"] == ["icmp_rcv @2 released", "icmp_rcv @1 released"]
    done = skblab("replay", str(path), "--save", str(tmp_path / "test_hand.py"))
    assert done.returncode == 0, done.stderr
    assert "the outcome is the same: status 0, packets decided about: 2" in done.stderr
    assert "wrong data byte #55" in done.stdout
    assert "1 passed" in passed(tmp_path / "test_hand.py")
    # Released the other way round, it is another outcome.
    path.write_text(text.replace("release @2", "release @0").replace("release @1", "release @2").replace("@0", "@1"))
    done = skblab("replay", str(path))
    assert done.returncode == 1
    assert "differs: went" in done.stderr
    assert "differs: stdout" in done.stderr
    assert eventually_nothing(before) == []


def test_what_keys_decide_is_saved_as_a_test_that_passes(lab: Lab, tmp_path: Path) -> None:
    async def test() -> Person:
        async with screen(lab, ping(3, "-W", "60"), ECHO) as person:
            await person.holds(3)
            await person.presses("e")
            await person.types("9", "#f-ip-ttl-8")
            await person.until(lambda: person.cell(0, 3).startswith("edited "), "it was edited")
            await person.presses("u", "d")
            await person.reads("-- #1 a copy goes on from icmp_rcv()")
            await person.presses("f")
            await person.types("icmp[6:2] < 100")
            await person.until(lambda: "icmp_rcv = hold if icmp[6:2] < 100" in person.title, "the new rule")
            await person.presses("down")
            await person.presses("a")
            await person.types("3")
            await person.until(lambda: person.cell(1, 1).startswith("in "), "how long it has still to go")
            await person.presses("R")
            await person.reads("3 received, +1 duplicates")
            await person.until(lambda: person.app.client.status == 0, "ping's end")
            await person.presses("q")
        return person

    person = asyncio.run(test())
    run = saved(person.app)
    assert [one.split(maxsplit=1)[1] for one in run.decisions] == [
        "icmp_rcv = edit ip.ttl=9 @1", "icmp_rcv = revert @1", "icmp_rcv = duplicate @1", "filter icmp[6:2] < 100",
        "icmp_rcv = delay 3s @2", "icmp_rcv = release @1", "icmp_rcv = release @3",
    ]  # fmt: skip
    assert run.outcome["went"] == (
        "icmp_rcv @1 released", "icmp_rcv @3 released", "icmp_rcv @2 released",
    )  # fmt: skip
    run.write(tmp_path / "test_hand.py")
    assert "1 passed" in passed(tmp_path / "test_hand.py")


@pytest.mark.parametrize("name", ["hand.py", "there.toml", "no/such.toml"])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(name: str, tmp_path: Path) -> None:
    (tmp_path / "there.toml").touch()
    done = skblab("run", "--save", str(tmp_path / name), "--", "ping", "-c1", "guest")
    assert done.returncode == 2
    assert "PING" not in done.stdout
