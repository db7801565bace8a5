"""Process 1 of a lab in virtual time that has ended, for the next lab: nothing of the first one is left in it."""

import os
import resource
import signal
from collections.abc import Iterator

import pytest

from skblab.errors import GuestLost, LabNameTaken
from skblab.host import nursery
from skblab.host.namespace import Namespaces
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec
from skblab.sweep.cell import Scenario, run_cell
from support import cpu_ticks, eventually_nothing, remains


@pytest.fixture(autouse=True)
def spares() -> Iterator[None]:
    before = remains()
    nursery.keep_spares()
    yield
    nursery.drop_spares()
    assert eventually_nothing(before) == []


def virtual(image: Image, name: str | None = None, **fields: object) -> Lab:
    return LabSpec(image=image, time="virtual", **fields).start(name)  # type: ignore[arg-type]


def inside(pid: int) -> set[str]:
    """Return the processes in a lab's PID namespace."""
    space = os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):  # noqa: PTH208
        try:
            if os.readlink(f"/proc/{name}/ns/pid") == space:  # noqa: PTH115
                found.add(name)
        except OSError:
            continue
    return found


def left_in(pid: int) -> list[str]:
    """Return what is in the directory of the guest's memory and sockets, where process 1 has one already."""
    return os.listdir(f"/proc/{pid}/root/dev/shm/guest")  # noqa: PTH208


def test_a_cell_has_the_same_outcome(every_image: Image) -> None:
    scenario = Scenario(spec=LabSpec(image=every_image, time="virtual", seed=4), client=("ping", "-n", "-c3", "guest"))
    rules = ["icmp_rcv = drop @2"]
    first, *others = [run_cell(scenario, rules) for _ in range(4)]
    nursery.drop_spares()
    assert [first] * 4 == [*others, run_cell(scenario, rules)]
    assert first.status == 0


def test_one_process_for_labs_one_after_another(image: Image) -> None:
    with virtual(image, "the-first") as lab:
        pid = lab.namespaces.pid
        kernel = lab.guest.inner_pid
        with virtual(image) as beside:
            assert beside.namespaces.pid != pid
    assert inside(pid) == {str(pid)}
    assert left_in(pid) == ["notify"]
    ticks = cpu_ticks(pid)
    with virtual(image, "the-first") as lab:  # the name was free
        assert lab.namespaces.pid == pid
        assert lab.guest.inner_pid == kernel
        assert lab.run(["ping", "-n", "-c1", "guest"]).returncode == 0
        with pytest.raises(LabNameTaken), virtual(image, "the-first"):
            pass
    assert cpu_ticks(pid) - ticks < 50


@pytest.mark.complains("panic")
@pytest.mark.parametrize("how", ["panic", "killed", "halted", "computes"])
def test_a_guest_that_ended_badly_leaves_nothing(image: Image, how: str) -> None:
    with virtual(image) as lab:
        pid = lab.namespaces.pid
        if how == "killed":
            signal.pidfd_send_signal(lab.guest.pidfd, signal.SIGKILL)
        elif how == "computes":
            lab.popen(["sh", "-c", "while :; do :; done"])
        else:
            key = "c" if how == "panic" else "o"
            with pytest.raises(GuestLost):
                lab.run(["sh", "-c", f"echo {key} >/proc/sysrq-trigger; sleep 1"])
    assert inside(pid) == {str(pid)}
    with virtual(image) as lab:
        assert lab.namespaces.pid == pid
        assert lab.complaints == ()
        assert lab.run(["ping", "-n", "-c1", "guest"]).returncode == 0


def test_what_a_guests_kernel_has_written_is_removed(image: Image) -> None:
    with virtual(image) as lab:
        pid = lab.namespaces.pid
        at = f"/proc/{pid}/root/dev/shm/guest"
        os.makedirs(f"{at}/a/b/c")  # noqa: PTH103
        os.symlink("/", f"{at}/a/root")  # noqa: PTH211
        os.symlink("/nonesuch", f"{at}/dangling")  # noqa: PTH211
        os.mkfifo(f"{at}/a/fifo")
        os.chmod(f"{at}/a/b", 0)  # noqa: PTH101
    assert left_in(pid) == ["notify"]
    assert os.path.exists("/etc")  # noqa: PTH110


def test_it_was_killed_meanwhile(image: Image) -> None:
    with virtual(image) as lab:
        pid = lab.namespaces.pid
    os.kill(pid, signal.SIGKILL)
    with virtual(image) as lab:
        assert lab.namespaces.pid != pid
        assert lab.run(["true"]).returncode == 0


def test_a_lab_with_a_link_or_another_order_has_its_own(image: Image) -> None:
    with virtual(image) as lab:
        pid = lab.namespaces.pid
    with Lab(image=image) as real:
        assert real.namespaces.pid != pid
    with Namespaces("other", link="other", within=True) as other:
        assert other.pid != pid
    with virtual(image) as lab:
        assert lab.namespaces.pid != pid  # it had another order, and was ended


def test_a_lab_inherits_what_this_process_is_now(image: Image) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
    with virtual(image) as lab:
        pid = lab.namespaces.pid
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft - 1, hard))  # it was forked before
    try:
        with virtual(image) as lab:
            assert lab.namespaces.pid != pid
            assert resource.prlimit(lab.guest.pid, resource.RLIMIT_MSGQUEUE)[0] == soft - 1
    finally:
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (soft, hard))


def test_a_kept_lab_is_not_ended(image: Image) -> None:
    with virtual(image, f"kept-{os.getpid()}") as lab:
        lab.keep()
    with Lab.join(lab.name) as joined:
        assert joined.run(["true"]).returncode == 0
        joined.end()
