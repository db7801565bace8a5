"""Any process of a lab may die at any time: nothing of the lab stays behind, and the next one starts."""

import contextlib
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.recipe import SERIES
from support import eventually_nothing, kill, remains, skblab, start_skblab

TIMES = int(os.environ.get("SKBLAB_KILLS", "12"))
EARLY, EARLY_S, LATE_S = 0.3, 1.0, 1.0
UP_S = 60
GRACE_S = 0.3
LAST_WORDS_S = 40
NAME = "deaths"
ENDLESS = ("ping", "-q", "-i", "0.2", "guest")

# A lab for several terminals, each with a command that uses it, as a script would have it.
SEVERAL = """
import subprocess, sys
from skblab.lab import Lab
skblab = [sys.executable, "-m", "skblab"]
commands = (
    ["exec", sys.argv[1], "--", "ping", "-q", "-i", "0.2", "guest"],
    ["run", "--lab", sys.argv[1], "-r", "icmp_rcv = delay 1ms", "--", "ping", "-q", "-i", "0.2", "guest"],
    ["exec", "--guest", sys.argv[1], "--", "sleep", "60"],
    ["log", "-f", sys.argv[1]],
)
with Lab(sys.argv[1], root="host") as lab:
    lab.keep()
    quiet = subprocess.DEVNULL
    joined = [subprocess.Popen([*skblab, *words], stdin=quiet, start_new_session=True) for words in commands]
    for one in joined:
        one.wait()
"""


def family(pid: int) -> dict[int, str]:
    """Return a process and all that descend from it, with their names."""
    found: dict[int, str] = {}
    waiting = [pid]
    while waiting:
        one = waiting.pop()
        try:
            found[one] = Path(f"/proc/{one}/comm").read_text().strip()
            for children in Path(f"/proc/{one}/task").glob("*/children"):
                waiting += [int(child) for child in children.read_text().split()]
        except OSError:
            continue
    return found


def live(running: process.Client, chance: random.Random) -> dict[int, str]:
    """Let a lab live for a random time, from before it has a kernel to after it has clients; return its processes."""
    if chance.random() < EARLY:
        select.select([], [], [], chance.uniform(0.05, EARLY_S))
        assert running.poll() is None, running.communicate()
    else:
        wait_for_kernel(running)
        select.select([], [], [], chance.uniform(0, LATE_S))
    return family(running.pid)


def wait_for_kernel(running: process.Client) -> None:
    """Wait until a lab's kernel runs; there is no event for what another process starts."""
    deadline_s = time.monotonic() + UP_S
    while "vmlinux" not in family(running.pid).values():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline_s
        select.select([], [], [], 0.01)


def a_victim(lab: dict[int, str], killed: Counter[str], chance: random.Random) -> int:
    """Choose a kind of process first, of those killed least: of some there are many, of gdb one."""
    fewest = min(killed[name] for name in lab.values())
    name = chance.choice(sorted({name for name in lab.values() if killed[name] == fewest}))
    return chance.choice(sorted(pid for pid, one in lab.items() if one == name))


def stopped_first(pid: int) -> None:
    """Stop a process, and kill it while it is stopped."""
    signal_if_there(pid, signal.SIGSTOP)
    select.select([], [], [], 0.05)
    kill(pid)


def signal_if_there(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def last_words(running: process.Client, about: object) -> str:
    """Return a command's output until it ends by itself."""
    try:
        return process.finish(running, timeout_s=LAST_WORDS_S).stdout
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"it does not end: {about}: {error.stdout!r}")


WAYS: tuple[tuple[str, Callable[[int], None]], ...] = (
    ("SIGKILL", kill),
    ("SIGSTOP, SIGKILL", stopped_first),
    ("SIGTERM", lambda pid: signal_if_there(pid, signal.SIGTERM)),
)
LABS = (
    ("ping", "--holds", "30", "--name", NAME, "--json"),
    ("run", "--name", NAME, "-q", "-r", "icmp_rcv = delay 1ms", "--", *ENDLESS),
    ("run", "--name", NAME, "-q", "-r", "icmp_rcv = stop @2", "--root", "host", "-g", "python3 -m http.server 80", "--",
     *ENDLESS),
    ("trace", "-q", "--name", NAME, "icmp", "--", *ENDLESS),
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.complains("panic")  # of a guest whose first process is killed, or stopped under it
def test_one_process_of_a_lab_is_killed_at_a_random_moment() -> None:
    """Each time another process of another kind of lab, in one of three ways; each kind on each series."""
    seed = int(os.environ.get("SKBLAB_KILLS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    before = remains()
    killed: Counter[str] = Counter()
    for number in range(TIMES):
        command, *options = LABS[number % len(LABS)]
        words = (command, "--series", SERIES[number // len(LABS) % len(SERIES)], *options)
        running = start_skblab(*words)
        assert running.stdout is not None
        lab = live(running, chance)
        victim, (how, end) = a_victim(lab, killed, chance), chance.choice(WAYS)
        end(victim)
        killed[lab[victim]] += 1
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(GRACE_S)
        running.send_signal(signal.SIGINT)  # a person whose ping or gdb has gone gives up
        about = (seed, number, words, lab[victim], how)
        said = last_words(running, about)
        assert "Traceback" not in said, (about, said)
        assert eventually_nothing(before) == [], about
    assert {"python", "vmlinux"} <= killed.keys(), killed
    done = skblab("ping", "-c", "1", "--name", NAME)
    assert done.returncode == 0, done.stderr
    sys.stdout.write(f"seed {seed}: {TIMES} kills, nothing left: {dict(killed)}\n")


@pytest.mark.slow
@pytest.mark.timeout(0)
@pytest.mark.complains("panic")  # of a guest whose first process is killed, or stopped under it
def test_a_process_that_uses_a_kept_lab_is_killed_at_a_random_moment() -> None:
    """The lab and its other users survive the death of a user; with process 1, everything ends."""
    seed = int(os.environ.get("SKBLAB_KILLS_SEED", "0")) or random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    before = remains()
    killed: Counter[str] = Counter()
    for number in range(TIMES // 4):
        running = process.start([sys.executable, "-c", SEVERAL, NAME], stdout=-1, stderr=-2, new_session=True)
        assert running.stdout is not None
        lab = live(running, chance)
        victim, (how, end) = a_victim(lab, killed, chance), chance.choice(WAYS)
        end(victim)
        killed[lab[victim]] += 1
        skblab("down", NAME)  # status 2 where it has not come up, or is gone already
        for pid in family(running.pid).keys() - {running.pid}:
            signal_if_there(pid, signal.SIGINT)
        process.end(running)
        about = (seed, number, lab[victim], how)
        assert eventually_nothing(before, within_s=15) == [], about
        done = skblab("run", "--name", NAME, "-q", "--", "ping", "-c", "1", "guest")
        assert done.returncode == 0, (about, done.stderr)
        assert eventually_nothing(before) == [], about
    sys.stdout.write(f"seed {seed}: {TIMES // 4} kills around a kept lab, nothing left: {dict(killed)}\n")


def test_a_killed_command_takes_its_lab_along() -> None:
    before = remains()
    running = start_skblab("ping", "--holds", "30", "--name", NAME)
    assert running.stdout is not None
    wait_for_kernel(running)
    assert "vmlinux" in family(running.pid).values()
    os.kill(running.pid, signal.SIGKILL)
    process.end(running)
    assert eventually_nothing(before) == []
