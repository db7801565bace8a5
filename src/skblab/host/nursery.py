"""The nursery: one process of which the first process of each lab is forked, because Python takes longer to start.

It lives as long as this process, has nothing of a lab, and is started again where what a lab inherits has changed.
"""

import atexit
import contextlib
import os
import resource
import socket
import subprocess
import threading
from typing import Any

from skblab.errors import GuestLost
from skblab.host import process

ANSWER_TIMEOUT_S = 10.0
CALL = "m.nurse("  # host/lab_init.py
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LD_PRELOAD")
NAMESPACES = ("user", "mnt", "pid", "net", "ipc")
LIMITS = tuple(value for name, value in vars(resource).items() if name.startswith("RLIMIT_"))

_lock = threading.Lock()
_nursery: "tuple[Any, _Nursery] | None" = None


class _Nursery:
    """The process, and the socket that takes orders."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._orders.settimeout(ANSWER_TIMEOUT_S)
        with theirs:
            self._process = process.start(
                process.of_ours("lab_init", f"{CALL}{theirs.fileno()})"),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,  # its children may outlive this process and the reader of its stderr
                pass_fds=[theirs.fileno()],
                new_session=True,
            )

    def fork(self, control: socket.socket) -> int:
        """Have it fork; return a pidfd of its child, or -1 without one.

        :raises ConnectionError: it is gone
        """
        socket.send_fds(self._orders, [b"\0"], [control.fileno()])
        data, fds, _, _ = socket.recv_fds(self._orders, 1, 1)
        if not data:
            raise ConnectionResetError
        return next(iter(fds), -1)

    def close(self, *, ours: bool) -> None:
        """End it, if it is not our parent's: then forget it. Its children live on."""
        self._orders.close()
        if not ours:
            process.let_live(self._process)
            return
        with process.undisturbed():
            self._process.kill()  # it has nothing to lose, and may be stopped
            self._process.wait()


def surroundings() -> tuple[object, ...]:
    """Return what a child inherits, and this process may have changed since the nursery was started."""
    spaces = []
    with contextlib.suppress(OSError):  # no /proc: the lab says so
        spaces = [os.stat(f"/proc/self/ns/{name}").st_ino for name in NAMESPACES]  # noqa: PTH116 - 5 for each lab
    return (
        os.getpid(), os.getresuid(), os.getresgid(), tuple(os.getgroups()), tuple(spaces),
        tuple(os.environ.get(name) for name in INHERITED), tuple(map(resource.getrlimit, LIMITS)),
        frozenset(os.sched_getaffinity(0)), os.getpriority(os.PRIO_PROCESS, 0),
    )  # fmt: skip


def first_process(control: socket.socket) -> int:
    """Fork process 1 of a lab, which answers on *control*; return a pidfd, or -1 of one that ended at once.

    :raises MissingPrerequisite: this user may have no more processes
    :raises GuestLost: it is killed as often as it is started
    """
    with _lock:
        for _ in range(2):
            try:
                return _current().fork(control)
            except (ConnectionError, TimeoutError):
                _forget()
    raise GuestLost("the process that starts labs is gone", found="killed twice", hint="dmesg | grep -i kill")


def _current() -> _Nursery:
    global _nursery  # noqa: PLW0603 - one a process
    here = surroundings()
    if _nursery is None or _nursery[0] != here:
        _forget()
        _nursery = here, _Nursery()
    return _nursery[1]


def _forget() -> None:
    global _nursery  # noqa: PLW0603
    if _nursery:
        (pid, *_), nursery = _nursery
        _nursery = None
        nursery.close(ours=pid == os.getpid())


@atexit.register
def _end_with_us() -> None:
    with contextlib.suppress(KeyboardInterrupt, SystemExit):  # a signal, to a process that is ending
        _forget()
