"""A lab belongs to the process that entered it, whatever its forks and threads do."""

import os
import select
import subprocess
import sys
import threading
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


def test_who_waits_is_told_that_another_thread_has_closed_the_lab(image: Image) -> None:
    told: list[SkblabError] = []
    waiting = threading.Event()

    def take() -> None:
        waiting.set()
        try:
            held.take(1, timeout_s=20)
        except SkblabError as error:
            told.append(error)

    with Lab(image=image) as lab:
        held = lab.hold("icmp_rcv")
        thread = threading.Thread(target=take)
        thread.start()
        waiting.wait()
        lab.close()
        thread.join()
    assert [(type(error), error.what) for error in told] == [(GuestLost, f"lab {lab.name} was closed")]


def test_who_runs_a_client_is_told_so_too(image: Image, tmp_path: Path) -> None:
    """Whether the client is found dead, or its pipes are closed."""
    told: list[SkblabError] = []

    def run() -> None:
        try:
            lab.run(["sh", "-c", f"echo >{runs}; exec sleep 600"])
        except SkblabError as error:
            told.append(error)

    runs = tmp_path / "runs"
    os.mkfifo(runs)
    for number in range(4):
        with Lab(image=image) as lab:
            thread = threading.Thread(target=run)
            thread.start()
            runs.read_text()  # waits for the client
            select.select([], [], [], number / 20)
            lab.close()
            thread.join()
        assert [(type(error), error.what) for error in told] == [(GuestLost, f"lab {lab.name} was closed")]
        told.clear()


@pytest.mark.parametrize("time", ["real", "virtual"])
def test_who_reads_a_file_without_an_end_is_told_so_too(image: Image, time: Literal["real", "virtual"]) -> None:
    told: list[SkblabError] = []
    reading = threading.Event()

    def read() -> None:
        reading.set()
        try:
            lab.guest.read("/dev/zero")
        except SkblabError as error:
            told.append(error)

    for number in range(1, 5):
        with LabSpec(image=image, time=time, root="host").start() as lab:
            reading.clear()
            thread = threading.Thread(target=read)
            thread.start()
            reading.wait()
            select.select([], [], [], number / 20)
            lab.close()
            thread.join()
        assert len(told) == number


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
        [sys.executable, "-m", "skblab.cli", "exec", lab.name, "--", "sh", "-c", "echo $$; exec sleep 600"],
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
