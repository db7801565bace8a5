"""Find every process that the tests have started, and no other of this machine.

The tests run in a child of the first process, which is the parent of every orphan (prctl(2), PR_SET_CHILD_SUBREAPER):
a process that outlives its parent, in a session of its own or not, is still its descendant.

As a program it is the interpreter of pytest-xdist's processes: each has its own orphans and names of labs.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
NURSERY = "lab_init as m; m.nurse("  # src/skblab/host/nursery.py
PASSED_ON = (signal.SIGTERM, signal.SIGHUP)


def adopt() -> None:
    """Continue in a child; here, reap orphans until it ends, and end with its status.

    Labs have their names in a directory of this run, because others may have labs on this machine.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    names = tempfile.mkdtemp(prefix="skblab-tests-")
    os.environ["XDG_RUNTIME_DIR"] = names
    tests = os.fork()
    if not tests:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's is the child's, too
    for number in PASSED_ON:
        signal.signal(number, lambda number, _: os.kill(tests, number))
    while (ended := os.wait())[0] != tests:
        pass
    shutil.rmtree(names, ignore_errors=True)
    status = os.waitstatus_to_exitcode(ended[1])
    os._exit(status if status >= 0 else 128 - status)


def descendants() -> dict[int, str]:
    """Return what the tests have started and still runs: process numbers, and what was started.

    The nursery of this process's labs is left out, but not what it has forked: it stays for the next lab.
    """
    children: dict[int, list[int]] = defaultdict(list)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = path.joinpath("stat").read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children[int(parent)].append(int(path.name))
    found: dict[int, str] = {}
    waiting = [one for one in children[os.getppid()] if one != os.getpid()] + children[os.getpid()]
    while waiting:
        one = waiting.pop()
        waiting += children[one]
        with contextlib.suppress(OSError):
            found[one] = Path(f"/proc/{one}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    ours = set(children[os.getpid()])
    return {one: command for one, command in found.items() if not (one in ours and NURSERY in command)}


if __name__ == "__main__":
    adopt()
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
