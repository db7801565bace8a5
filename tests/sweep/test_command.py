"""``skblab sweep`` as a user has it: planted faults are found, results are the same, interrupted sweeps go on."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.store import images_dir
from support import SKBLAB, Person, skblab

FAULTS = Path(__file__).resolve().parents[2] / "examples/faults"
PING = ("ping", "-n", "-c1", "-W1", "guest")


def sweep(*options: str, name: str = "", client: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    example = FAULTS / f"{name}.py"
    of_udp = "udp:" if name == "lookup" else ""
    server = ["-g", f"{of_udp}python3 {example} serve"] if name else []
    return skblab("sweep", *options, *server, "--", *(client or ("python3", str(example))))


def bad(path: Path) -> list[tuple[int, str]]:
    """Return the packet and the verdict of each bad cell in a file of JSON lines."""
    cells = [json.loads(line) for line in path.read_text().splitlines()]
    return [(one["packets"][0], one["verdicts"][0]) for one in cells if one["event"] == "cell" and one["bad"]]


def test_one_duplicate_breaks_the_lookup(tmp_path: Path) -> None:
    """The table is the same the next time, and the line below it fails in the same way."""
    files = ["--json", str(tmp_path / "a.json"), "--html", str(tmp_path / "a.html"), "--junit", str(tmp_path / "a.xml")]
    done = sweep(*files, name="lookup")
    assert done.returncode == 1, done.stderr
    assert bad(tmp_path / "a.json") == [(2, "duplicate")]
    assert "19 cells: same 3, slower 15, output 1" in done.stdout
    assert sweep(name="lookup").stdout == done.stdout
    (repeat,) = re.findall(r"^  (skblab run .*)$", done.stdout, re.MULTILINE)
    again = skblab(*shlex.split(repeat)[1:])
    outcome = next(
        cell["outcome"] for cell in map(json.loads, (tmp_path / "a.json").read_text().splitlines())
        if cell["event"] == "cell" and cell["bad"]
    )  # fmt: skip
    assert again.stdout == outcome["stdout"] == "ada 1815\ngrace 1815\n"
    assert 'failures="1"' in (tmp_path / "a.xml").read_text()


def test_a_lost_tail_breaks_one_recv(tmp_path: Path) -> None:
    done = sweep("--verdicts", "drop", "--json", str(tmp_path / "a.json"), name="one_recv")
    assert done.returncode == 1, done.stderr
    assert bad(tmp_path / "a.json") == [(5, "drop")]


def test_a_reset_makes_the_client_pay_twice(tmp_path: Path) -> None:
    done = sweep("--verdicts", "drop,edit tcp.flags=R", "--json", str(tmp_path / "a.json"), name="retry")
    assert done.returncode == 1, done.stderr
    # The ACK of what was paid, and the answer.
    assert bad(tmp_path / "a.json") == [(5, "edit tcp.flags=R"), (6, "edit tcp.flags=R")]


DIES = """
import os, socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("", 99))
seen = set()
while True:
    asked, sender = one.recvfrom(9)
    one.sendto(asked, sender)
    asked in seen and os.abort()
    seen.add(asked)
"""
ASKS = """
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for asked in b"ab":
    one.sendto(bytes([asked]), ("192.168.10.1", 99))
    one.recv(9)
"""


def test_a_server_that_dies_behind_its_answer(tmp_path: Path) -> None:
    """The client does not hear of it."""
    (tmp_path / "dies.py").write_text(DIES)
    done = skblab(
        "sweep", "--verdicts", "duplicate", "-g", f"udp:exec python3 {tmp_path / 'dies.py'}", "--",
        "python3", "-c", ASKS, timeout_s=100,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert re.findall(r"^#(\d) duplicate: (.*)", done.stdout, re.MULTILINE) == [
        ("1", "server gone"),
        ("3", "server gone"),
    ]


def test_two_faults_at_once(tmp_path: Path) -> None:
    """ping -c1 sends one request: what is lost fails it, and what comes twice does not."""
    options = ["--verdicts", "drop,duplicate", "--pairs", "3", "--judge", "status", "--json", str(tmp_path / "a.json")]
    done = sweep(*options, client=PING)
    assert done.returncode == 1, done.stderr
    cells = [one for one in map(json.loads, (tmp_path / "a.json").read_text().splitlines()) if one["event"] == "cell"]
    assert len(cells) == 7
    assert all(one["bad"] == ("drop" in one["verdicts"]) for one in cells), done.stdout


def test_the_fewest_faults_are_found(tmp_path: Path) -> None:
    """They are saved as a scenario, which fails as the program does; a run says which functions are new."""
    example, saved = FAULTS / "lookup.py", tmp_path / "least.toml"
    words = ("--runs", "30", "--seed", "1", "--coverage", "--save", str(saved), "--verdicts", "drop,duplicate")
    done = skblab("explore", *words, "-g", f"udp:python3 {example} serve", "--", "python3", str(example))
    assert done.returncode == 1, done.stderr
    assert re.search(r"^the fewest of \d+ sets: #2 duplicate: other output\n  skblab run .*-r 'ip_rcv = duplicate @2'",
                     done.stdout, re.MULTILINE), done.stdout  # fmt: skip
    assert re.search(r"^packets entered [1-9]\d* functions that they do not enter without a fault$",
                     done.stdout, re.MULTILINE), done.stdout  # fmt: skip
    assert "; first into " in done.stderr
    again = skblab("matrix", str(saved))
    assert again.returncode == 1
    assert "stdout is 'ada 1815\\ngrace 1815\\n', not what was expected" in again.stdout
    refused = skblab("explore", "--save", str(saved), "--", *PING)
    assert refused.returncode == 2
    assert "there is a file" in refused.stderr


def test_a_command_that_copes_with_every_set() -> None:
    words = ("--runs", "5", "--verdicts", "duplicate", "--judge", "status")
    done = skblab("explore", *words, "--", *PING)
    assert done.returncode == 0, done.stderr
    assert "copes with all" in done.stdout


def test_sets_of_faults_that_never_happen_test_nothing() -> None:
    sends = "import socket; socket.socket(2, 2).sendto(b'?', ('guest', 53))"
    words = ("--at", "udp_rcv", "--verdicts", "edit ip.version=6")  # which the kernel has checked before
    done = skblab("explore", "--runs", "4", *words, "--", "python3", "-c", sends)
    assert done.returncode == 118, done.stderr
    assert "none of them happened" in done.stdout
    assert "#1 edit ip.version=6: not edited" in done.stderr


@pytest.mark.parametrize("command", ["sweep", "explore"])
def test_without_a_cell_nothing_is_tested(command: str) -> None:
    done = skblab(command, "--verdicts", "edit tcp.flags=R,corrupt", "--", *PING, "-s", "0")
    assert (done.returncode, done.stdout) == (118, "")
    assert "nothing would be tested" in done.stderr


def test_other_bytes_are_another_output_though_they_are_no_text() -> None:
    sends = "import socket; s = socket.socket(2, 2); s.bind(('', 53)); s.sendto(b'\\xff\\xfe', s.recvfrom(9)[1])"
    asks = "import os, socket; s = socket.socket(2, 2); s.sendto(b'?', ('guest', 53)); os.write(1, s.recv(9))"
    words = ("--verdicts", 'edit raw.load="\\xfe\\xff"', "--filter", "udp src port 53")
    done = skblab("sweep", *words, "-g", f'udp:python3 -c "{sends}"', "--", "python3", "-c", asks)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "other output" in done.stdout


def test_a_sweep_that_is_interrupted_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in the middle leaves what is done; --resume runs only the other cells."""
    (tmp_path / "images").symlink_to(images_dir())
    monkeypatch.setenv("SKBLAB_CACHE", str(tmp_path))
    words = ("--verdicts", "drop,delay 3s", "--judge", "status", "--", "ping", "-n", "-c20", "-i1", "guest")
    person = Person("sweep", *words)
    person.reads("cells a second")
    person.types(b"\x03")
    person.reads("--resume goes on with it")
    assert person.program.wait() == 130
    (file,) = (tmp_path / "sweeps").iterdir()
    begin, first, *rest = file.read_text().splitlines()
    fields = json.loads(first)
    fields["outcome"]["status"] = 77  # so that it is seen where it comes from
    file.write_text("\n".join((begin, json.dumps(fields), *rest)) + "\n")
    done = skblab("sweep", "--resume", *words)
    assert done.returncode == 1, done.stderr
    assert done.stdout.splitlines()[-1] == "80 cells: same 40, slower 39, failed 1" or "failed 1" in done.stdout
    assert done.stdout.count("failed 77") == 2  # in the table, and below it
    assert not file.exists()


@pytest.mark.parametrize(
    ("options", "client", "says"),
    [
        ((), ("false",), "fails without a fault (status 1)"),
        ((), ("cat", "/proc/sys/kernel/random/uuid"), "no packet enters ip_rcv, ipv6_rcv"),
        (("--filter", "sctp"), PING, "no packet that 'sctp' takes"),
        (("--verdicts", "drip"), PING, "no such verdict: drip"),
        (("--time", "real"), PING, "a sweep is in virtual time"),
        (("--workers", "-1"), PING, "no number of workers"),
        (("--html", "/proc/self/comm"), PING, "there is a file"),
        (("--junit", "/none/out.xml"), PING, "cannot write /none/out.xml"),
    ],
)
def test_what_cannot_be_swept(options: tuple[str, ...], client: tuple[str, ...], says: str) -> None:
    done = sweep(*options, client=client)
    assert done.returncode in {1, 2}
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_what_is_not_the_same_twice_is_said(tmp_path: Path) -> None:
    """The client reads a file that grows."""
    grows, log = tmp_path / "grows", tmp_path / "log"
    client = ("sh", "-c", f"ping -c1 guest >/dev/null; cat {grows}")
    with grows.open("wb") as file:
        growing = process.start(["sh", "-c", "while echo x; do sleep 0.02; done"], stdout=file, guarded=True)
    try:
        with log.open("wb") as file:
            running = process.start([*SKBLAB, "sweep", "--", *client], stdout=subprocess.PIPE, stderr=file)
            running.communicate(timeout=60)
    finally:
        process.end(growing)
    assert running.returncode == 1
    assert "two runs without a fault differ" in log.read_text()
    assert "stdout: " in log.read_text()


def test_an_edit_that_changes_nothing_has_tested_nothing() -> None:
    done = sweep("--verdicts", "edit ip.ttl=64", "--judge", "status", client=PING)
    assert done.returncode == 1
    assert "2 cells: unfired 2" in done.stdout
    assert "#1 edit ip.ttl=64: no difference" in done.stdout
    done = skblab("explore", "--runs", "3", "--verdicts", "edit ip.ttl=64", "--judge", "status", "--", *PING)
    assert done.returncode == 118
    assert "none of them happened" in done.stdout


def test_every_allocation_of_a_packet_fails_once() -> None:
    """Functions without a packet have rows, too: their calls, each with its caller."""
    client = ("ping", "-n", "-c2", "-i1", "-w9", "192.168.10.1")
    done = sweep("--at", "__alloc_skb", "--verdicts", "return NULL", "--judge", "status", client=client)
    assert done.returncode == 0
    assert re.search(r"^ *\d+ +[0-9.]+  called by __ip_append_data\(\) +\+", done.stdout, re.MULTILINE)
    assert "ethertype" not in done.stdout
    (cells,) = re.findall(r"^(\d+) cells: same \d+, (?:slower|faster) \d+", done.stdout, re.MULTILINE)
    assert int(cells) > 5
