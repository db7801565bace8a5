"""Start programs: no other module does.

A program is an argument list, never a shell line; every start is logged as a line that can be pasted into a shell.
"""

import contextlib
import logging
import os
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, Protocol, Self, runtime_checkable

from skblab.errors import MissingPrerequisite, UsageError
from skblab.host.enter import CANNOT_START, END, TAKEN

log = logging.getLogger(__name__)

Argument = str | bytes | Path
Stream = int | IO[bytes] | None
STAND_IN_ENDS_S = 1.0
INTERRUPTIONS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Process = subprocess.Popen[bytes]  # noqa: TID251 - only here


class Client(Protocol):
    """A program on the host side of a lab: a Process, or in virtual time a command of the guest's."""

    returncode: int | None

    @property
    def args(self) -> Any:  # noqa: ANN401 - as subprocess has it
        """The command."""

    @property
    def stdin(self) -> IO[bytes] | None:
        """The pipe to its standard input, if there is one."""

    @property
    def stdout(self) -> IO[bytes] | None:
        """The pipe of its standard output, if there is one."""

    @property
    def stderr(self) -> IO[bytes] | None:
        """The pipe of its standard error, if there is one."""

    @property
    def pid(self) -> int:
        """Its process, on the machine or in the guest."""

    def __enter__(self) -> Self:
        """Leaving a ``with`` ends the pipes."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        """End the pipes."""

    def poll(self) -> int | None:
        """Return its status, or None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end; return its status."""

    def communicate(self, input: bytes | None = None, timeout: float | None = None) -> tuple[bytes, bytes]:  # noqa: A002
        """Write all input, read all output, wait for its end."""

    def send_signal(self, sig: int) -> None:
        """Send it a signal."""

    def terminate(self) -> None:
        """Send it SIGTERM."""

    def kill(self) -> None:
        """Send it SIGKILL."""


@runtime_checkable
class Ends(Protocol):
    """A client that ends in a way of its own."""

    def end(self) -> None:
        """Kill it, and wait for its end."""


SOURCE = Path(__file__).parents[2]
_kept_open: list[int] = []


def of_ours(module: str, call: str) -> list[str]:
    """Return the command that calls a function of a sibling module in a new Python without site-packages."""
    imports = f"import sys; sys.path.insert(0, {str(SOURCE)!r}); from skblab.host import {module} as m"
    return [sys.executable, "-I", "-S", "-c", f"{imports}; {call}"]


def stand_in(call: str) -> list[str]:
    """Return the command of a stand-in."""
    return of_ours("enter", call)


def _is_stand_in(words: list[str]) -> bool:
    *python, code = stand_in("")
    return len(words) > len(python) and words[: len(python)] == python and words[len(python)].startswith(code)


@contextlib.contextmanager
def _signals_blocked(words: list[str]) -> Iterator[None]:
    """Block the signals that a stand-in passes on while it is started; it inherits the mask.

    A signal that comes before the stand-in is ready waits until then; Python would print a traceback.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TAKEN if _is_stand_in(words) else ())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def words_of(argv: Sequence[Argument]) -> list[str]:
    """Return the words of a command line.

    :raises UsageError: it is one string, which no shell reads here; or has no words, or one with a NUL byte
    """
    if isinstance(argv, str | bytes):
        text = os.fsdecode(argv)
        raise UsageError(
            f"a command is a list of words, not one string: {text}",
            hint=f'{text.split()}, or ["sh", "-c", "..."] where a shell is to read it',
        )
    words = [os.fsdecode(word) if isinstance(word, bytes) else str(word) for word in argv]
    if not words:
        raise UsageError("no command")
    if any("\0" in word for word in words):
        raise UsageError("a word of a command has no NUL byte")
    return words


def start(  # noqa: PLR0913 - subprocess.Popen's keywords
    argv: Sequence[Argument],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    stdin: Stream = subprocess.DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    pass_fds: Sequence[int] = (),
    new_session: bool = False,
    guarded: bool = False,
) -> Process:
    """Start *argv* and return at once.

    :param guarded: it and its children end with this process, however that ends; it gets a new session
    :raises MissingPrerequisite: the program is not installed, or this user may have no more processes
    """
    words = words_of(argv)
    log.debug("$ %s", shlex.join(words))
    if guarded and shutil.which(words[0], path=(env or os.environ).get("PATH")) is None:
        raise _not_installed(words[0])
    command = [*stand_in(f"m.guard({os.getpid()}, sys.argv[1:])"), *words] if guarded else words
    try:
        with _signals_blocked(command):
            return Process(
                command,
                cwd=cwd,
                env=env,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
                pass_fds=[*pass_fds, *_kept_open],
                start_new_session=new_session or guarded,
            )
    except BlockingIOError as error:  # fork(2)
        raise no_more_processes(f"{words[0]}: {error.strerror}") from None
    except FileNotFoundError as error:
        if error.filename != words[0]:  # the missing file is its directory, or /dev/null
            raise
        raise _not_installed(words[0]) from None


def _not_installed(program: str) -> MissingPrerequisite:
    return MissingPrerequisite(f"{program} is not installed", hint="skblab doctor   (names the package)")


@contextlib.contextmanager
def kept_open(descriptor: int) -> Iterator[None]:
    """Let every program that starts inside the block inherit a descriptor, and the lock on it."""
    _kept_open.append(descriptor)
    try:
        yield
    finally:
        _kept_open.remove(descriptor)


def no_more_processes(found: str) -> MissingPrerequisite:
    """Return the error for a fork(2) that was refused (EAGAIN)."""
    return MissingPrerequisite(
        "this user may have no more processes here",
        found=found,
        hint="ulimit -u unlimited; end what you no longer need: skblab ls; skblab down --all",
    )


def have_room(descriptors: int) -> None:
    """Make room for a number of new descriptors: raise the soft limit to the hard one if needed (getrlimit(2)).

    :raises MissingPrerequisite: the hard limit is too low
    """
    there = sum(1 for _ in Path("/proc/self/fd").iterdir())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if there + descriptors > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if there + descriptors > hard:
        raise MissingPrerequisite(
            "this process may not have so many files open",
            found=f"{there} are open, a lab takes up to {descriptors}, and the limit is {hard}",
            hint="fewer labs in one process, or: ulimit -n 65536   (only root can raise a hard limit)",
        )


def finish(running: Client, *, timeout_s: float | None = None) -> subprocess.CompletedProcess[str]:
    """Wait for a program; return its status and its output as text. If the wait is interrupted, kill it.

    :raises subprocess.TimeoutExpired: it ran longer than *timeout_s*
    """
    try:
        out, err = running.communicate(timeout=timeout_s)
    except BaseException:
        end(running)
        raise
    texts = [(data or b"").decode(errors="replace") for data in (out, err)]
    return subprocess.CompletedProcess(running.args, running.wait(), *texts)


def run(
    argv: Sequence[Argument],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run *argv* until it or this process ends; a failing status raises nothing.

    :raises MissingPrerequisite: the program is not installed, or this user may have no more processes
    :raises subprocess.TimeoutExpired: it ran longer than *timeout_s*; it was killed
    """
    running = start(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, guarded=True)
    done = finish(running, timeout_s=timeout_s)
    if done.returncode == CANNOT_START and done.stderr.startswith("skblab: cannot start "):
        raise no_more_processes(done.stderr.strip())
    return done


_of_users = 0  # calls of a user's functions by the main thread, in which a second signal is not delayed


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let a second signal interrupt this block within ``undisturbed(only_once=True)``: a user's function may hang."""
    global _of_users  # noqa: PLW0603 - of the main thread
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = _of_users
    try:
        _of_users = before + 1
        yield
    finally:
        _of_users = before


@contextlib.contextmanager
def undisturbed(*, only_once: bool = False) -> Iterator[None]:
    """Delay Ctrl-C and similar signals until the block, which must not be interrupted, has ended.

    :param only_once: a second signal interrupts what is ``interruptible()`` in it
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers only in the main thread
        return
    found = {int(number): signal.getsignal(number) for number in INTERRUPTIONS}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    came: list[int] = []

    def delay(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if only_once and _of_users and len(came) > 1:
            handlers[number](number, frame)

    try:
        for number in handlers:
            signal.signal(number, delay)
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def interrupt(running: Client) -> None:
    """Pass a Ctrl-C on to a program, unless it is in the terminal's foreground group, which has received it."""
    if not isinstance(running, subprocess.Popen):  # noqa: TID251 - its class
        running.send_signal(signal.SIGINT)
        return
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        running.send_signal(signal.SIGINT)
        return
    try:
        with contextlib.suppress(ProcessLookupError):  # it has ended, by the same Ctrl-C
            if os.tcgetpgrp(terminal) != os.getpgid(running.pid):
                running.send_signal(signal.SIGINT)
    finally:
        os.close(terminal)


def unfinished(running: Client) -> bool:
    """Whether a program still runs, or a pipe of its output is still open."""
    pipes = (running.stdin, running.stdout, running.stderr)
    return running.poll() is None or any(pipe is not None and not pipe.closed for pipe in pipes)


def exit_status(status: int) -> int:
    """Return a program's status as a shell does: 128 plus the signal's number if a signal killed it."""
    return status if status >= 0 else 128 - status


def let_live(running: Process) -> None:
    """Let a program outlive this process, which will not wait for it."""
    running.returncode = 0  # or subprocess prints a ResourceWarning


def pid_of(pidfd: int) -> int:
    """Return the pid of the process behind a pidfd, in this process's namespace (proc_pid_fdinfo(5))."""
    for line in Path(f"/proc/self/fdinfo/{pidfd}").read_text().splitlines():
        key, _, value = line.partition(":")
        if key == "Pid":
            return int(value)
    raise AssertionError("fdinfo of a pidfd without Pid")


def that_run(program: Path) -> list[int]:
    """Return the pids of this machine whose argv[0] is a program."""
    found = []
    for path in Path("/proc").glob("[1-9]*"):
        with contextlib.suppress(OSError):
            if path.joinpath("cmdline").read_bytes().partition(b"\0")[0] == os.fsencode(program):
                found.append(int(path.name))
    return found


def end(running: Client) -> None:
    """Kill a program that may still run, with its group if it leads one; wait for it, close its pipes."""
    if isinstance(running, Ends):
        running.end()
    elif running.poll() is None:
        leads = isinstance(running, subprocess.Popen) and os.getpgid(running.pid) == running.pid  # noqa: TID251
        if leads:
            os.killpg(running.pid, signal.SIGKILL)
        elif isinstance(running.args, list) and _is_stand_in(running.args):
            running.send_signal(END)
            running.send_signal(signal.SIGCONT)  # it has stopped if its program has
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(STAND_IN_ENDS_S)
        if running.poll() is None:
            running.kill()
        running.wait()
    for pipe in (running.stdin, running.stdout, running.stderr):
        if pipe is not None:
            pipe.close()
