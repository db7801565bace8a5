"""Whoever dies whenever, nothing of a lab stays behind, and the next one starts."""

import os
import random
import select
import signal
from pathlib import Path

import pytest

from skblab.host import process
from support import eventually_nothing, kill, remains, skblab, start_skblab

TIMES = 50
LONGEST_LIFE_S = 1.8
GRACE_S = 0.3


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


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_one_process_of_a_lab_is_killed_at_a_random_moment() -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    chance = random.Random(seed)
    before = remains()
    killed: dict[str, int] = {}
    for _ in range(TIMES):
        running = start_skblab("ping", "--holds", "30", "--name", "deaths", "--json")
        assert running.stdout is not None
        select.select([running.stdout], [], [], chance.uniform(0.05, LONGEST_LIFE_S))
        lab = family(running.pid)
        victim = chance.choice(sorted(lab))
        kill(victim)
        killed[lab[victim]] = killed.get(lab[victim], 0) + 1
        if not select.select([running.stdout], [], [], GRACE_S)[0] and running.poll() is None:
            running.send_signal(signal.SIGINT)  # a person whose ping or gdb has gone gives up
        said = process.finish(running, timeout_s=20).stdout
        assert "Traceback" not in said, (seed, lab[victim], said)
        assert eventually_nothing(before) == [], (seed, lab[victim], said)
    assert len(killed) >= 3, killed
    done = skblab("ping", "-c", "1", "--name", "deaths")
    assert done.returncode == 0, done.stderr


def test_a_killed_command_takes_its_lab_along() -> None:
    before = remains()
    running = start_skblab("ping", "--holds", "30", "--name", "deaths")
    assert running.stdout is not None
    select.select([running.stdout], [], [], 1.0)
    assert any(name == "vmlinux" or "linux" in name for name in family(running.pid).values())
    os.kill(running.pid, signal.SIGKILL)
    process.end(running)
    assert eventually_nothing(before) == []
