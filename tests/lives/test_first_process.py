"""A lab ends at once under a first process that reaps no orphan, as in many a container."""

import sys

import pytest

from skblab.host import process
from support import SKBLAB

FIRST = """
import subprocess, sys, time
running = subprocess.Popen(sys.argv[1:], stdout=subprocess.PIPE)
assert running.stdout.readline() == b"runs\\n"
began_s = time.monotonic()
running.terminate()
print(running.wait(), time.monotonic() - began_s)
"""


@pytest.mark.wall_clock
def test_an_end_waits_for_nobody() -> None:
    argv = [*SKBLAB, "run", "-q", "--", "sh", "-c", "echo runs; exec sleep 100"]
    spaces = ["unshare", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    done = process.run([*spaces, sys.executable, "-c", FIRST, *argv], timeout_s=60)
    assert done.returncode == 0, done.stdout + done.stderr
    status, took_s = done.stdout.split()
    assert (int(status), float(took_s) < 3) == (143, True), took_s
