"""Run one program as a stand-in for it: ``enter(pidfd, parent, argv)`` inside a lab, ``guard(parent, argv)`` outside.

A program of its own that imports little. ``enter`` joins the namespaces of the process behind *pidfd* (setns(2) on a
pidfd, Linux 5.8) and forks, because only children enter the PID namespace. The stand-in passes signals on to its child,
stops when the child stops, and ends with its exit status. If the stand-in is killed, so is the child. At the signal
``END`` it kills the child itself, reaps it, and ends as it did: without a stand-in the machine's first process would
reap the child, at some time, and the lab would end then. When the process *parent* ends, both end.
"""

from __future__ import annotations

import ctypes
import errno
import os

from skblab.host.waiting import wait

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import NoReturn
else:
    import _signal as signal  # signal itself makes enums of its numbers: a third of the time that this module takes

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SI_USER = 0  # sigaction(2): a process sent the signal; the terminal's are SI_KERNEL and reach the child directly
SIGNALFD_BYTES = 128  # signalfd(2), struct signalfd_siginfo: it begins with the signal's number, errno and code
CANNOT_START, NOT_FOUND = 126, 127

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip
END = signal.SIGRTMIN
TAKEN = {*FORWARDED, END}  # process.start() has blocked these already
WANTED = {*TAKEN, signal.SIGCHLD}

libc = ctypes.CDLL(None, use_errno=True)


def enter(pidfd: int, parent: int, argv: list[str]) -> NoReturn:
    """Run *argv* in the namespaces of the process behind *pidfd*; end with its status, or when *parent* ends."""
    watched = _watch(parent)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        directory = os.getcwd()  # noqa: PTH109 - this module imports little; setns(2) changes to the root
    except OSError:  # deleted, or hidden by another mount
        directory = ""
    entered = libc.setns(pidfd, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC) == 0
    # EINVAL: this process is on the lab's host side already (kernel/user_namespace.c userns_install()).
    if not entered and ctypes.get_errno() != errno.EINVAL:
        why = os.strerror(ctypes.get_errno())
        _refuse(f"skblab: cannot enter the lab: {why}\n  a command inside one lab cannot enter another one")
    os.close(pidfd)

    def go_there() -> None:
        try:
            os.chdir(directory)  # the same path, seen through the lab's mounts
        except OSError:  # not in the lab's mounts
            os.fchdir(here)

    child = _start(argv, go_there)
    _stand_for(child, watched, lambda: os.kill(child, signal.SIGKILL))


def guard(parent: int, argv: list[str]) -> NoReturn:
    """Run *argv* in this process's group; end with its status. When *parent* ends, kill the whole group."""
    watched = _watch(parent)
    child = _start(argv, lambda: None)
    _stand_for(child, watched, lambda: os.killpg(0, signal.SIGKILL))


def _watch(parent: int) -> int:
    try:
        return os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(CANNOT_START)


def _refuse(why: str, status: int = CANNOT_START) -> NoReturn:
    try:
        os.write(2, f"{why}\n".encode(errors="replace"))
    finally:
        os._exit(status)


def _start(argv: list[str], prepare: Callable[[], None]) -> int:
    """Start a program; block the forwarded signals in this process from now on."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WANTED)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if ignored, the child's end sends no signal
    try:
        child = os.fork()
    except OSError as error:
        _refuse(f"skblab: cannot start {argv[0]}: {error.strerror}")
    if child:
        return child
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; programs expect the default
        signal.signal(number, signal.SIG_DFL)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's handler would print a traceback
    signal.pthread_sigmask(signal.SIG_SETMASK, before - TAKEN)
    try:
        prepare()
    except OSError as error:
        _refuse(f"skblab: cannot work in this directory: {error.strerror}")
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        _refuse(f"{argv[0]}: {error.strerror}", NOT_FOUND if error.errno == errno.ENOENT else CANNOT_START)
    except ValueError:
        _refuse("skblab: the command's name is empty", NOT_FOUND)


def _stand_for(child: int, parent: int, end: Callable[[], None]) -> NoReturn:
    """Pass signals on to the child, stop and end as it does; call *end* when the parent has ended."""
    signals = _signalfd()
    while True:
        if parent in wait([signals, parent]):
            end()
            os.waitpid(child, 0)  # or the lab would not end before somebody else has reaped it
            os._exit(128 + signal.SIGKILL)
        received = os.read(signals, SIGNALFD_BYTES)
        number, code = (int.from_bytes(received[at : at + 4], "little", signed=True) for at in (0, 8))
        if number == END:
            end()
            continue
        if number != signal.SIGCHLD:
            if code <= SI_USER:
                os.kill(child, number)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            continue
        if os.WIFSTOPPED(status):
            # ^Z, or a background job that reads the terminal: stop too, and continue together. SIGSTOP was sent to
            # the child alone: do not stop, because the sender may kill the child and would leave us stopped.
            if os.WSTOPSIG(status) != signal.SIGSTOP:
                os.kill(os.getpid(), signal.SIGSTOP)
                os.kill(child, signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        os._exit(code)


def _signalfd() -> int:
    """Return a descriptor that reads the blocked signals."""
    mask = (ctypes.c_ulong * 16)()  # sigset_t
    for number in WANTED:
        mask[0] |= 1 << number - 1
    descriptor: int = libc.signalfd(-1, mask, os.O_CLOEXEC)
    return descriptor
