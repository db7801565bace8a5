"""A program that only computes, and those that do not: real processes, a sleeping parent and its child."""

import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from skblab.guest.spin import ALONE_S, Spin
from skblab.host import process

# A parent that sleeps, or wakes now and then; its child computes, or sleeps too.
KERNEL = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]])
print(flush=True)
while True:
    time.sleep(float(sys.argv[2]))
"""
COMPUTES, SLEEPS = "while True: pass", "import time; time.sleep(100)"
WITHIN_S = 60.0  # on a busy machine


@contextmanager
def spin(program: str, wakes_every_s: float) -> Iterator[tuple[Spin, process.Process]]:
    argv: list[process.Argument] = [sys.executable, "-c", KERNEL, program, str(wakes_every_s)]
    kernel = process.start(argv, stdout=subprocess.PIPE, new_session=True)
    try:
        assert kernel.stdout
        assert kernel.stdout.readline() == b"\n"
        yield Spin(kernel.pid), kernel
    finally:
        process.end(kernel)


def looks(one: Spin, within_s: float) -> bool:
    deadline = time.monotonic() + within_s
    while not one.is_there():
        if time.monotonic() > deadline:
            return False
        select.select([], [], [], 0.1)
    return True


def test_one_who_only_computes_is_found() -> None:
    with spin(COMPUTES, 1000) as (one, _):
        began_s = time.monotonic()
        assert looks(one, WITHIN_S)
        assert time.monotonic() - began_s >= ALONE_S


@pytest.mark.parametrize(("program", "wakes_every_s"), [(COMPUTES, 0.02), (SLEEPS, 1000)], ids=["calls", "waits"])
def test_one_who_calls_or_waits_is_not(program: str, wakes_every_s: float) -> None:
    with spin(program, wakes_every_s) as (one, _):
        assert not looks(one, 2 * ALONE_S)
