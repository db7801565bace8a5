"""The process of which labs are forked: one for a process of ours, new where what labs inherit has changed."""

import os
import resource
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from orphans import NURSERY
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import SKBLAB, eventually_nothing, remains


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def nursery_of(lab: Lab) -> int:
    """Return the process of which a lab's first process was forked."""
    return parent(lab.namespaces.pid)


@pytest.fixture
def labs(image: Image) -> Iterator["Labs"]:
    with ExitStack() as stack:
        yield Labs(image, stack)


class Labs:
    """Labs that end with the test."""

    def __init__(self, image: Image, stack: ExitStack) -> None:
        self._image, self._stack = image, stack

    def another(self) -> Lab:
        return self._stack.enter_context(Lab(image=self._image))


def answers(lab: Lab) -> bool:
    return lab.run(["ping", "-c", "1", "-W", "5", "guest"]).returncode == 0


def test_one_for_all_labs(labs: Labs) -> None:
    first, second = nursery_of(labs.another()), nursery_of(labs.another())
    assert first == second
    assert NURSERY in Path(f"/proc/{first}/cmdline").read_text()
    assert parent(first) == os.getpid()
    assert os.getsid(first) == first


def test_it_is_killed(labs: Labs) -> None:
    lab = labs.another()
    killed = nursery_of(lab)
    os.kill(killed, signal.SIGKILL)
    after = labs.another()
    assert nursery_of(after) != killed
    assert answers(lab)
    assert answers(after)


@pytest.mark.parametrize("which", ["limit", "path", "processors"])
def test_labs_inherit_what_this_process_is_now(labs: Labs, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = nursery_of(labs.another())
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    with ExitStack() as stack:
        if which == "limit":
            resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft - 1, hard))
            stack.callback(resource.setrlimit, resource.RLIMIT_MSGQUEUE, (soft, hard))
        elif which == "path":
            monkeypatch.setenv("PATH", f"/nonesuch:{os.environ['PATH']}")
        else:
            os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(parent(os.getpid())))
        lab = labs.another()
        assert nursery_of(lab) != before
        kernel = lab.guest.pid
        if which == "limit":
            assert resource.prlimit(kernel, resource.RLIMIT_MSGQUEUE) == resource.getrlimit(resource.RLIMIT_MSGQUEUE)
        elif which == "processors":
            assert len(os.sched_getaffinity(kernel)) == 1
        assert answers(lab)


def test_a_forked_child_has_its_own(labs: Labs, image: Image) -> None:
    ours = nursery_of(labs.another())
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            with Lab(image=image) as lab:
                os.write(write, b"%d" % nursery_of(lab))
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as answer:
        theirs = int(answer.read())
    os.waitpid(child, 0)
    assert theirs != ours
    assert nursery_of(labs.another()) == ours


def test_it_ends_with_its_process() -> None:
    before = remains()
    done = process.run([*SKBLAB, "run", "--", "true"])
    assert done.returncode == 0
    assert eventually_nothing(before, within_s=1) == []
