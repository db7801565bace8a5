"""A real module makes real kernels complain in every way; each is recognised, and a program's output is not."""

import os
import queue
from collections.abc import Callable, Iterator

import pytest

from skblab.errors import GuestLost
from skblab.guest.complaint import Complaint
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from support import skblab

Built = Callable[[Image], str]


@pytest.fixture(scope="module")
def complaining(complains: Built, every_image: Image) -> Iterator[Lab]:
    with Lab(image=every_image, modules=[complains(every_image)], root="host") as lab:
        yield lab


PARAMETER = "/sys/module/complains/parameters/make"


def make(lab: Lab, what: str) -> Complaint:
    """Make the kernel complain once; return the complaint, which names the function that did it."""
    before = len(lab.complaints)
    lab.guest.run(["sh", "-c", f"echo {what} >{PARAMETER}"], timeout_s=30)
    complaint = lab.complaints[before]
    assert f"do_{what}" in complaint.trace[:20]
    return complaint


@pytest.mark.complains("warning", "refcount", "allocation")
@pytest.mark.parametrize(
    ("what", "kind", "words"),
    [
        ("warn", "warning", "complains.c:"),
        ("warn_text", "warning", "complains: 64 are too many"),
        ("refcount", "refcount", "refcount_t: decrement hit 0; leaking memory."),
        ("allocation", "allocation", "page allocation failure: order:8"),
    ],
)
def test_every_series_is_heard(complaining: Lab, what: str, kind: str, words: str) -> None:
    complaint = make(complaining, what)
    assert complaint.kind == kind
    assert any(words in line for line in complaint.first_lines)
    assert len(complaint.lines) > len(complaint.trace) > 5
    seconds = float(complaining.guest.run(["cat", "/proc/uptime"]).stdout.split()[0])
    assert 0 <= complaint.at_s <= seconds + 0.1


def test_a_programs_words_are_none(complaining: Lab) -> None:
    said = "printf 'WARNING: mine\\n[    9.000000] BUG: mine, too\\n' >/dev/console; printf 'half a line' >/dev/console"
    before = complaining.complaints
    complaining.guest.run(["sh", "-c", said], check=True)
    assert "BUG: mine, too" in complaining.console.text()
    assert complaining.complaints == before


@pytest.mark.complains("warning")
def test_what_hides_the_kernels_words_hides_no_complaint(complains: Built, image: Image) -> None:
    quiet = ["quiet", "loglevel=1", "printk.time=0"]
    with Lab(image=image, modules=[complains(image)], root="host", kernel_arguments=quiet) as lab:
        lab.guest.run(["sh", "-c", "echo 1 1 1 1 >/proc/sys/kernel/printk"], check=True)
        assert make(lab, "warn").kind == "warning"


@pytest.mark.complains("ubsan", "list", "sleep", "hung task", "kasan", "lockdep")
def test_the_checkers_are_heard(complains: Built) -> None:
    image = find_image(variant="kasan")
    with Lab(image=image, modules=[complains(image)], root="host", memory_mib=256, boot_timeout_s=60) as lab:
        assert make(lab, "sleep").title.startswith("BUG: sleeping function called from invalid context at")
        assert make(lab, "shift").title.startswith("UBSAN: shift-out-of-bounds in")
        assert make(lab, "list").kind == "list"
        complaint = make(lab, "inversion")
        assert (complaint.kind, complaint.title) == (
            "lockdep", "WARNING: possible circular locking dependency detected",
        )  # fmt: skip
        assert "is trying to acquire lock:" in complaint.first_lines[1]
        complaint = make(lab, "after_free")
        assert (complaint.kind, complaint.trace[0]) == ("kasan", "do_after_free")
        assert complaint.title.startswith("BUG: KASAN: slab-use-after-free in do_after_free+")
        assert "Freed by task" in "\n".join(complaint.lines) or "Memory state" in "\n".join(complaint.lines)
        hung: queue.Queue[Complaint] = queue.Queue()
        with lab.on_complaint(lambda one: hung.put(one) if one.kind == "hung task" else None):
            said = f"echo hang >{PARAMETER}; echo 1 >/proc/sys/kernel/hung_task_timeout_secs"
            lab.guest.run(["sh", "-c", said], check=True)
            assert hung.get(timeout=20).title.startswith("INFO: task hangs:")


@pytest.mark.complains("lockdep", "sleep")
def test_a_sleep_under_rcu_is_heard(complains: Built) -> None:
    image = find_image(variant="kasan")
    with Lab(image=image, modules=[complains(image)], root="host", memory_mib=256, boot_timeout_s=60) as lab:
        complaint = make(lab, "rcu")
        assert complaint.title == "WARNING: suspicious RCU usage"
        assert complaint.first_lines[1].endswith("Illegal context switch in RCU read-side critical section!")


@pytest.mark.complains("panic")
def test_a_bug_is_the_panic_that_comes_of_it(complains: Built, every_image: Image) -> None:
    with Lab(image=every_image, modules=[complains(every_image)], root="host") as lab:
        with pytest.raises(GuestLost):
            make(lab, "bug")
        (complaint,) = lab.complaints
        assert (complaint.kind, complaint.title) == ("panic", lab.console.panic())
        assert "do_bug()" in complaint.title


@pytest.mark.complains("warning")
def test_who_joins_knows_all_and_what_is_new(complains: Built, image: Image) -> None:
    name = f"complaints-{os.getpid()}"
    with Lab(name, image=image, modules=[complains(image)], root="host") as lab:
        lab.keep()
    with Lab.join(name) as first:
        make(first, "warn")
        with Lab.join(name) as second:
            make(first, "warn_text")
            assert [len(one.complaints) for one in (first, second)] == [2, 2]
            assert [len(one.new_complaints) for one in (first, second)] == [2, 1]
    assert skblab("down", name).stderr == "", "both were heard"
    assert len(first.complaints) == 2, "known when it is over"
