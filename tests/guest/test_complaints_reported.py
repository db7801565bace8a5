"""Every command prints the complaints of its labs' kernels, and ``--strict`` makes them the status."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from skblab.cli.complaints import STATUS
from skblab.errors import GuestLost
from skblab.host import process
from skblab.image.image import Image
from support import SENTENCE, SKBLAB, Person, read_until, skblab, start_skblab

pytestmark = pytest.mark.complains("warning")
PAGE = Path(__file__).parents[2] / "docs/how-to/kernel-complaints.md"
MAKE = "echo warn >/sys/module/complains/parameters/make"


@pytest.fixture(scope="module")
def module(complains: Callable[[Image], str], image: Image) -> str:
    """The module and a parameter that make the guest's kernel print a WARNING when it is loaded, at boot."""
    return f"{complains(image)},make=warn"


@pytest.fixture
def up(complains: Callable[[Image], str], image: Image) -> Iterator[str]:
    """A lab that is up, and has not complained yet."""
    name = f"complains-{os.getpid()}"
    assert skblab("up", name, "--root", "host", "--module", complains(image)).returncode == 0
    yield name
    skblab("down", name)


@pytest.mark.parametrize(
    "words",
    [
        ("run", "--", "true"),
        ("run", "-q", "-r", "icmp_rcv = trace", "--", "ping", "-c1", "guest"),
        ("trace", "icmp", "--", "ping", "-c1", "guest"),
        ("trace", "-q", "icmp", "--", "ping", "-c1", "guest"),
        ("gdb", "-ex", "quit"),
    ],
    ids=" ".join,
)
def test_every_command_says_it(module: str, words: tuple[str, ...]) -> None:
    done = skblab(words[0], "--strict", "--module", module, *words[1:])
    assert done.returncode == STATUS
    said = done.stderr[done.stderr.index(SENTENCE) :].splitlines()
    assert said[0] == f"{SENTENCE} once:"
    assert said[1].endswith("[complains]")
    assert "WARNING: CPU: 0 PID: " in said[1]
    assert said[2] == "      #0  do_warn()"


def test_nothing_is_said_of_a_kernel_that_does_not_complain() -> None:
    done = skblab("run", "--strict", "--", "sh", "-c", "exit 3")
    assert (done.returncode, done.stderr) == (3, "events lost: 0\n")


def test_a_commands_own_status_gives_way(module: str) -> None:
    assert skblab("run", "--no-strict", "--module", module, "--", "sh", "-c", "exit 3").returncode == 3
    assert skblab("run", "--module", module, "--", "sh", "-c", "exit 3").returncode == STATUS
    assert skblab("run", "--strict", "--module", module, "--", "sh", "-c", "exit 3").returncode == STATUS


def test_an_event_for_programs(module: str) -> None:
    done = skblab("run", "--json", "-", "--strict", "--module", module, "--", "true")
    assert f"{SENTENCE} once" in done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["event"] for event in events] == ["complaint", "end"]
    assert (events[0]["kind"], events[0]["trace"][0]) == ("warning", "do_warn")
    assert events[0]["title"] == events[0]["lines"][0]
    assert (events[1]["status"], done.returncode) == (STATUS, STATUS)
    done = skblab("run", "--json", "-", "--no-strict", "--module", module, "--", "sh", "-c", "exit 3")
    assert (json.loads(done.stdout.splitlines()[-1])["status"], done.returncode) == (3, 3)
    done = skblab("trace", "--json", "-", "--module", module, "icmp", "--", "ping", "-c1", "guest")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (last["type"], last["kind"]) == ("complaint", "warning")


def test_an_event_comes_at_once(up: str) -> None:
    said = start_skblab("run", "--json", "-", "--lab", up, "--", "sh", "-c", "echo runs; exec sleep 100")
    assert said.stdout
    try:
        read_until(said.stdout.fileno(), lambda text: "runs" in text)
        assert skblab("exec", "--guest", up, "--", "sh", "-c", MAKE).returncode == 0
        assert '"do_warn"' in read_until(said.stdout.fileno(), lambda text: text.endswith("\n"))
        said.send_signal(signal.SIGINT)
        out, _ = said.communicate(timeout=30)
        assert f"{SENTENCE} once".encode() in out
        assert b'"complaint"' not in out
    finally:
        process.end(said)


def test_of_a_lab_that_is_up_what_came_meanwhile(up: str) -> None:
    assert SENTENCE in skblab("exec", "--guest", up, "--", "sh", "-c", MAKE).stderr
    assert skblab("exec", "--guest", "--strict", up, "--", "true").returncode == 0
    done = skblab("exec", "--guest", "--strict", up, "--", "sh", "-c", f"{MAKE}; {MAKE}")
    assert f"{SENTENCE} 2 times:" in done.stderr
    assert done.returncode == STATUS
    answer = json.loads(skblab("mconsole", up, "version", "--json").stdout)
    assert answer["complaints"] == []
    assert json.loads(skblab("ping", "--lab", up, "-c1", "--json").stdout)["complaints"] == []
    assert (skblab("down", up).stderr) == ""


def test_down_says_what_nobody_has_heard(up: str) -> None:
    said = start_skblab("exec", "--guest", up, "--", "sh", "-c", f"{MAKE}; echo done; sleep 100")
    assert said.stdout
    read_until(said.stdout.fileno(), lambda text: "done" in text)
    process.end(said)
    done = skblab("down", up, "--strict")
    assert f"{SENTENCE} once:" in done.stderr
    assert done.returncode == STATUS


def test_up_says_it_and_its_log_has_it(module: str) -> None:
    name = f"complained-{os.getpid()}"
    done = skblab("up", name, "--json", "--module", module)
    try:
        assert SENTENCE in done.stderr
        assert json.loads(done.stdout)["complaints"][0]["kind"] == "warning"
        assert "---[ end trace" in skblab("log", name).stdout
    finally:
        assert skblab("down", name).stderr == ""


def test_the_screen_says_it_when_it_has_closed(module: str) -> None:
    person = Person("hold", "--strict", "--module", module, "--", "ping", "guest")
    person.reads("icmp_rcv")
    person.types(b"q")
    person.reads(f"{SENTENCE} once:")
    assert person.program.wait(20) == STATUS


@pytest.mark.complains("refcount")
def test_the_page_shows_what_is_printed(module: str) -> None:
    command, *said = re.findall(r"^\$ skblab run (.*)\n((?:.*\n)*)\$ echo", PAGE.read_text(), re.MULTILINE)[0]
    done = skblab("run", *command.replace("complains.ko,make=refcount", module.replace("=warn", "=refcount")).split())
    assert done.returncode == STATUS
    number = re.compile(r"(?<=PID: )\d+|(?<=\[) *[\d.]+|0x[0-9a-f]+")
    assert number.sub("N", done.stderr) == number.sub("N", "".join(said))


@pytest.mark.complains("panic")
def test_a_panic_is_said_once(up: str) -> None:
    done = skblab("run", "--strict", "--lab", up, "--", *SKBLAB, "mconsole", up, "sysrq", "c")
    assert done.returncode == GuestLost.exit_status
    assert "sysrq_handle_crash()" in done.stderr
    assert SENTENCE not in done.stderr
