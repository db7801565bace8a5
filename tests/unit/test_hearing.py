"""A watch of a console reports each complaint once, whatever its callback does."""

import os
import queue
from collections.abc import Iterator
from contextlib import closing

import pytest

from skblab.errors import CallbackFailed
from skblab.guest.complaint import Complaint
from skblab.guest.console import Console
from skblab.guest.hearing import ComplaintWatch

LEAK = b"[    1.000000] kmemleak: %d new suspected memory leaks (see /sys/kernel/debug/kmemleak)\n"
HUNG = b"[    1.000000] INFO: task hangs:50 blocked for more than 120 seconds.\n"


@pytest.fixture
def console() -> Iterator[Console]:
    with closing(Console()) as console:
        yield console


def test_each_is_told_once(console: Console) -> None:
    heard: queue.Queue[Complaint] = queue.Queue()
    os.write(console.writer, LEAK % 1 + LEAK % 2)
    with ComplaintWatch(console, heard.put, skip=1) as watch:
        assert heard.get(timeout=10).title.startswith("kmemleak: 2 ")
        os.write(console.writer, LEAK[:20])
        os.write(console.writer, (LEAK % 3)[20:])
        assert heard.get(timeout=10).title.startswith("kmemleak: 3 ")
        os.write(console.writer, HUNG)
        assert heard.get(timeout=10).kind == "hung task", "silence is its end"
        os.write(console.writer, HUNG)
    assert heard.get_nowait().kind == "hung task", "so is the end of the watch"
    assert (watch.reported, heard.empty()) == (4, True)
    os.write(console.writer, LEAK % 4)
    assert len(console.complaints()) == 6
    assert heard.empty()


@pytest.mark.parametrize(
    ("error", "said"), [(ValueError("mine"), "ValueError: mine"), (pytest.fail.Exception("mine"), "Failed\\(mine\\)")]
)
def test_a_callback_that_raises_ends_nothing(console: Console, error: BaseException, said: str) -> None:
    heard: queue.Queue[Complaint] = queue.Queue()

    def told(complaint: Complaint) -> None:
        heard.put(complaint)
        raise error

    watch = ComplaintWatch(console, told)
    for number in (1, 2):
        os.write(console.writer, LEAK % number)
        heard.get(timeout=10)
    with pytest.raises(CallbackFailed, match=f"the callback of a complaint raised .*{said}"):
        watch.close()


def test_a_callback_that_closes_its_watch(console: Console) -> None:
    heard: queue.Queue[Complaint] = queue.Queue()
    watches: queue.Queue[ComplaintWatch] = queue.Queue()

    def told(complaint: Complaint) -> None:
        watches.get(timeout=10).close()
        heard.put(complaint)

    watches.put(ComplaintWatch(console, told))
    os.write(console.writer, LEAK % 1 + LEAK % 2)
    assert heard.get(timeout=10).title.startswith("kmemleak: 1 ")
    with pytest.raises(queue.Empty):
        heard.get(timeout=0.3)


def test_what_nobody_has_heard(console: Console) -> None:
    again = Console(os.dup(console.descriptor))
    os.write(console.writer, LEAK % 1)
    again.close()
    os.write(console.writer, LEAK % 2)
    (untold,) = console.unreported_complaints()
    assert untold.title.startswith("kmemleak: 2 ")
