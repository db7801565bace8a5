"""A lab belongs to the process that entered it, whatever its forks and threads do."""

import contextlib
import os
import select
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal

import pytest

from skblab.errors import GuestLost, SkblabError, UsageError
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec

FORKING = """
import os, subprocess, sys
from skblab.lab import Lab
with Lab() as lab, lab.trace(filter="icmp") as tracer, lab.hold("icmp_rcv") as held, lab.debugger() as gdb:
    gdb.resume()
    child = os.fork()
    if child == 0:
        sys.exit(0)  # every with is left
    assert os.waitpid(child, 0)[1] == 0
    ping = lab.popen(["ping", "-q", "-c", "1", "-W", "5", "guest"], stdout=subprocess.DEVNULL)
    held.take(1)[0].release()
    assert ping.wait() == 0
    gdb.interrupt()
    print(gdb.evaluate("40 + 2"))
    gdb.resume()
print(len(tracer.trace().steps) > 20)
"""


def test_a_forked_child_that_leaves_everything_ends_nothing() -> None:
    done = process.run([sys.executable, "-c", FORKING], timeout_s=60)
    assert (done.returncode, done.stdout) == (0, "42\nTrue\n"), done.stderr


@contextlib.contextmanager
def beside(call: Callable[[], object]) -> Iterator[list[SkblabError]]:
    """Call something on another thread while the block runs; yield the list that gets its error when the block ends."""
    errors: list[SkblabError] = []

    def run() -> None:
        try:
            call()
        except SkblabError as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield errors
    thread.join()


def says_closed(lab: Lab, errors: list[SkblabError]) -> bool:
    return [(type(error), error.what) for error in errors] == [(GuestLost, f"lab {lab.name} was closed")]


def test_another_thread_closes_the_lab_of_one_who_waits(image: Image) -> None:
    waiting = threading.Event()

    def take() -> None:
        waiting.set()
        held.take(1, timeout_s=20)

    with Lab(image=image) as lab:
        held = lab.hold("icmp_rcv")
        with beside(take) as errors:
            waiting.wait()
            lab.close()
    assert says_closed(lab, errors), errors


@pytest.mark.parametrize("after_s", [0, 0.05, 0.1, 0.15])
def test_another_thread_closes_the_lab_of_a_client(image: Image, tmp_path: Path, after_s: float) -> None:
    """Whether the client is found dead, or its pipes are closed."""
    runs = tmp_path / "runs"
    os.mkfifo(runs)
    with Lab(image=image) as lab, beside(lambda: lab.run(["sh", "-c", f"echo >{runs}; exec sleep 600"])) as errors:
        runs.read_text()  # waits for the client
        select.select([], [], [], after_s)
        lab.close()
    assert says_closed(lab, errors), errors


@pytest.mark.parametrize("time", ["real", "virtual"])
@pytest.mark.parametrize("after_s", [0.05, 0.1, 0.15, 0.2])
def test_another_thread_closes_the_lab_of_one_who_reads_a_file_without_an_end(
    image: Image, time: Literal["real", "virtual"], after_s: float
) -> None:
    with LabSpec(image=image, time=time, root="host").start() as lab:
        with beside(lambda: lab.guest.read("/dev/zero")) as errors:
            select.select([], [], [], after_s)
            lab.close()
        assert len(errors) == 1


@pytest.mark.parametrize("name", ["console", "guest", "image", "namespaces", "terminals"])
def test_what_a_lab_has_once_it_is_entered(name: str) -> None:
    with pytest.raises(UsageError, match=f"has not been entered: it has no {name} yet"):
        getattr(Lab(), name)


def test_what_a_lab_never_has() -> None:
    assert not hasattr(Lab(), "guests")


def test_a_killed_commands_client_goes_with_it(image: Image) -> None:
    """The kept lab stays; the client ends with its owner."""
    with Lab(f"killed-{os.getpid()}", image=image) as lab:
        lab.keep()
    running = process.start(
        [sys.executable, "-m", "skblab", "exec", lab.name, "--", "sh", "-c", "echo $$; exec sleep 600"],
        stdout=subprocess.PIPE,
    )
    try:
        assert running.stdout
        assert running.stdout.readline()
        running.kill()
        assert running.stdout.read() == b""  # the reader of the pipe has ended
    finally:
        process.end(running)
        with Lab.join(lab.name) as joined:
            joined.end()
