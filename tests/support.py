"""Help for tests: the command line as a user has it, and what is left of a lab."""

import contextlib
import fcntl
import os
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from orphans import descendants
from skblab.guest.boot import Guest
from skblab.guest.complaint import Complains, kind_of, when_left
from skblab.host import process, registry
from skblab.lab import Lab
from skblab.testing import parse_counters
from skblab.trace.file import ALIGNMENT, CHUNK, MAGIC, read_chunks

SKBLAB = (sys.executable, "-m", "skblab")


# The command line's output about complaints, as text and as an event.
SENTENCE = "the guest's kernel complained"
TITLE = re.compile(r"^  \[ *\d+\.\d{6}\] (.*)", re.MULTILINE)
EVENT = re.compile(r'"event": "complaint".*?"title": "(.*?)"')


@dataclass(frozen=True)
class Heard:
    """A complaint of a guest's kernel, from any source."""

    lab: str
    kind: str
    words: str


class HeardComplaints:
    """The complaints of all labs' kernels since the last call: of this process's labs, and in the output of the command
    line.
    """

    def __init__(self) -> None:
        self._taken: dict[Complains, int] = {}  # of the labs that run: how many of each one's are known already
        self._heard: list[Heard] = []
        when_left.append(self._left)
        enter = Lab.__enter__

        def enter_and_listen(lab: Lab) -> Lab:
            self._taken[lab] = 0
            return enter(lab)

        Lab.__enter__ = enter_and_listen  # type: ignore[method-assign, assignment]
        finish = process.finish

        def finish_and_listen(
            running: process.Client, *, timeout_s: float | None = None
        ) -> subprocess.CompletedProcess[str]:
            done = finish(running, timeout_s=timeout_s)
            self.read(done.stdout + done.stderr)
            return done

        process.finish = finish_and_listen

    def read(self, text: str) -> None:
        """Look for complaints in a command's output."""
        said = TITLE.findall(text.partition(SENTENCE)[2]) + EVENT.findall(text)
        self._heard += [Heard("of a command", kind, one) for one in said if (kind := kind_of(one))]

    def _left(self, lab: Complains) -> None:
        self._look(lab)
        self._taken.pop(lab, None)

    def _look(self, lab: Complains) -> None:
        new = lab.new_complaints[self._taken.get(lab, 0) :]
        self._taken[lab] = len(lab.new_complaints)
        self._heard += [Heard(lab.name, one.kind, "\n".join([*one.first_lines, *one.trace])) for one in new]

    def take(self) -> list[Heard]:
        """Return the complaints since the last call."""
        for lab in list(self._taken):
            self._look(lab)
        heard, self._heard = self._heard, []
        return heard


complaints = HeardComplaints()


def skblab(*words: str, timeout_s: float = 90, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end, which is never a fault of skblab."""
    done = process.run([*SKBLAB, *words], env=os.environ | environment, timeout_s=timeout_s)
    assert "a fault of skblab itself" not in done.stderr, done.stderr
    return done


def start_skblab(*words: str, **environment: str) -> process.Client:
    """Start the command line; its output is the caller's to read."""
    return process.start(
        [*SKBLAB, *words],
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        new_session=True,
    )


def unshared(*script: str, then: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run a command as root of a user and mount namespace of its own, in which some lines of shell came first."""
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec", "\n".join([*script, 'exec "$@"']), "sh"]
    return process.run([*argv, *then], timeout_s=90)


@dataclass(frozen=True)
class Remains:
    """What a lab could leave behind."""

    processes: frozenset[str]
    namespaces: frozenset[str]
    devices: frozenset[str]
    locks: frozenset[str]
    shared_memory: frozenset[str]

    def __sub__(self, before: "Remains") -> list[str]:
        """Return what is here and was not before."""
        pairs = zip(vars(self).items(), vars(before).values(), strict=True)
        return [f"{kind}: {one}" for (kind, now), then in pairs for one in sorted(now - then)]


def remains() -> Remains:
    """Look at everything that the tests have started, and what of it holds a namespace, a device or a name."""
    processes, namespaces = set(), set()
    for pid, command in descendants().items():
        with contextlib.suppress(OSError):
            for kind in ("net", "pid", "user", "mnt", "ipc"):
                namespaces.add(str(Path(f"/proc/{pid}/ns/{kind}").readlink()))
            processes.add(f"{pid} {command[:100]}")
    return Remains(
        processes=frozenset(processes),
        namespaces=frozenset(namespaces),
        devices=_names("/sys/class/net", "skb"),
        locks=frozenset(_held_names()),
        shared_memory=_names("/dev/shm", ("skblab", "uml", "vm_file")),
    )


def _names(directory: str, begin: str | tuple[str, ...]) -> frozenset[str]:
    return frozenset(path.name for path in Path(directory).iterdir() if path.name.startswith(begin))


def _held_names() -> list[str]:
    held = []
    for path in registry.registry_dir().glob("*.lab"):
        try:
            registry.forget(path.stem, registry.claim(path.stem, patience_s=0))
        except Exception as error:  # noqa: BLE001 - whatever it says, the name is not free
            held.append(f"{path.stem}: {error}")
    return held


def eventually_nothing(before: Remains, *, within_s: float = 5.0) -> list[str]:
    """Return what has appeared since *before* and does not disappear within some time.

    The kernel frees a PID namespace after its first process has ended; another process's end is no event here.
    """
    deadline = time.monotonic() + within_s
    while True:
        left = remains() - before
        if not left or time.monotonic() > deadline:
            return left
        select.select([], [], [], 0.02)


def eventually(holds: Callable[[], bool], within_s: float = 5) -> bool:
    """Whether something holds soon."""
    end_s = time.monotonic() + within_s
    while not holds() and time.monotonic() < end_s:
        select.select([], [], [], 0.02)
    return holds()


def read_until(stream_fd: int, enough: Callable[[str], bool], *, within_s: float = 30.0) -> str:
    """Read a descriptor until its text is enough.

    :raises AssertionError: it ended, or the time ran out; with what was read
    """
    said = b""
    deadline = time.monotonic() + within_s
    while not enough(said.decode(errors="replace")):
        ready, _, _ = select.select([stream_fd], [], [], max(deadline - time.monotonic(), 0))
        assert ready, f"not within {within_s} s: {said.decode(errors='replace')}"
        try:
            data = os.read(stream_fd, 65536)
        except OSError:
            data = b""
        assert data, f"ended: {said.decode(errors='replace')}"
        said += data
    complaints.read(said.decode(errors="replace"))
    return said.decode(errors="replace")


def counters(side: Lab | Guest) -> dict[str, int]:
    """Return the counters of a side's kernel, of IPv4, by nstat's names."""
    return parse_counters(side.run(["cat", "/proc/net/snmp", "/proc/net/netstat"]).stdout)


def without_sums(path: Path) -> bytes:
    """Return a trace file as older versions wrote it: there its records alone say that they are damaged."""
    chunks = [CHUNK.pack(kind, len(it)) + it + bytes(-len(it) % ALIGNMENT) for kind, it in read_chunks(path)]
    return MAGIC + b"".join(chunks)


def kill(pid: int) -> None:
    """Kill a process that may be gone."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def cpu_ticks(pid: int) -> int:
    """Return how much processor time a process has used, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def open_files(pid: int) -> dict[int, str]:
    """Return what each of a process's descriptors is, but for those that it closes meanwhile."""
    files = {}
    for one in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            files[int(one.name)] = str(one.readlink())
    return files


def environment_of_a_terminal() -> dict[str, str]:
    """Return this process's, without the size that pytest and its workers give to programs in any terminal."""
    return {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}} | {
        "TERM": "xterm-256color"
    }


class Person:
    """A person at a terminal of 100 columns and 50 lines."""

    def __init__(self, *words: str, program: Sequence[str] = SKBLAB) -> None:
        self.terminal, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 100, 0, 0))
        with os.fdopen(theirs, "r+b", buffering=0, closefd=True) as tty:
            self.program = process.start(
                ["setsid", "--ctty", "--wait", *program, *words],
                stdin=tty,
                stdout=tty,
                stderr=tty,
                env=environment_of_a_terminal(),
            )
        self.read = ""

    def types(self, keys: bytes) -> None:
        os.write(self.terminal, keys)

    def reads(self, words: str) -> str:
        """Read until some words are there; return everything up to now, without colours."""
        said = read_until(self.terminal, lambda text: words in plain(text))
        self.read += said
        return plain(self.read)


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]|\r", "", text)
