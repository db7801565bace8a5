"""Run one program inside a lab: ``enter(pidfd, argv)``.

A program of its own that imports little. It joins the namespaces of the process behind *pidfd* (setns(2) on a pidfd,
Linux 5.8), forks, for a PID namespace takes children only, and stands for its child: the same signals, the same stops,
the same exit status. If it is killed, so is the child.
"""

from __future__ import annotations

import ctypes
import os
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

CLONE_NEWNS = 0x00020000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SI_USER = 0  # sigaction(2): a signal that a process sent; the terminal's own are SI_KERNEL and reach the child directly

FORWARDED = (
    signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH,
)  # fmt: skip


def enter(pidfd: int, argv: list[str]) -> NoReturn:
    """Run *argv* in the namespaces of the process behind *pidfd* and end as it ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    directory = os.getcwd()  # noqa: PTH109 - see the module's own words on imports; setns(2) goes to the root
    if libc.setns(pidfd, CLONE_NEWUSER | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC) < 0:
        os.write(2, f"skblab: cannot enter the lab: {os.strerror(ctypes.get_errno())}\n".encode())
        os._exit(126)
    os.close(pidfd)
    wanted = {*FORWARDED, signal.SIGCHLD}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        child = os.fork()
    except OSError as error:
        os.write(2, f"skblab: cannot start {argv[0]} in the lab: {error.strerror}\n".encode())
        os._exit(126)
    if child == 0:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number in (signal.SIGPIPE, signal.SIGXFSZ):  # Python ignores these; programs expect them not to be
            signal.signal(number, signal.SIG_DFL)
        try:
            os.chdir(directory)  # the same path, seen through the lab's mounts
            os.execvp(argv[0], argv)  # noqa: S606
        except OSError as error:
            os.write(2, f"{argv[0]}: {error.strerror}\n".encode())
        os._exit(127)
    _stand_for(child, wanted)


def _stand_for(child: int, wanted: set[signal.Signals]) -> NoReturn:
    """Pass signals on to the child, stop as it stops, end as it ends; *wanted* is blocked."""
    while True:
        received = signal.sigwaitinfo(wanted)
        if received.si_signo != signal.SIGCHLD:
            if received.si_code <= SI_USER:
                os.kill(child, received.si_signo)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            continue
        if os.WIFSTOPPED(status):  # the terminal's ^Z, or a reading background job: stop likewise, then go on likewise
            os.kill(os.getpid(), signal.SIGSTOP)
            os.kill(child, signal.SIGCONT)
            continue
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {-code})
            signal.signal(-code, signal.SIG_DFL) if -code != signal.SIGKILL else None
            os.kill(os.getpid(), -code)
        os._exit(code)
