"""How a kernel runs the guest's programs: by ptrace, or by seccomp where it can."""

from collections.abc import Iterator

import pytest

from skblab.errors import UsageError
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.spec import LabSpec
from support import skblab

BY_SECCOMP = "Checking that seccomp filters can be installed...OK"
BY_PTRACE = "Checking that ptrace can change system call numbers...OK"
NEWEST, DEFAULT = "7.3", "6.12"

# Floating-point state of every width that the processor has, kept while threads take turns and signals come.
BUSY = """
import hashlib, math, os, signal, threading
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.003, 0.003)
def sums(seed, found):
    value = float(seed)
    for _ in range(100_000):
        value = math.sin(value) + math.sqrt(abs(value) + 1)
    found.append((seed, value, hashlib.sha256(bytes(4096 * seed)).hexdigest()))
def all_of_them():
    found = []
    threads = [threading.Thread(target=sums, args=(seed, found)) for seed in range(1, 5)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return sorted(found)
expected = all_of_them()
children = []
for _ in range(4):
    if not (child := os.fork()):
        os._exit(all_of_them() != expected)
    children.append(child)
print([os.waitpid(child, 0)[1] for child in children], all_of_them() == expected)
"""


@pytest.fixture(scope="module", params=["ptrace", "seccomp"])
def each_way(request: pytest.FixtureRequest) -> Iterator[Lab]:
    with Lab(series=NEWEST, root="host", memory_mib=192, userspace=request.param) as lab:
        assert (BY_SECCOMP in lab.console.text()) == (request.param == "seccomp")
        assert (BY_PTRACE in lab.console.text()) == (request.param == "ptrace")
        yield lab


def test_programs_fork_and_execute(each_way: Lab) -> None:
    loop = "i=0; while [ $i -lt 100 ]; do /bin/true || exit; i=$((i+1)); done; echo $i"
    assert each_way.guest.run(["sh", "-c", loop], timeout_s=60).stdout == "100\n"


def test_registers_survive_threads_signals_and_forks(each_way: Lab) -> None:
    done = each_way.guest.run(["python3", "-c", BUSY], timeout_s=100)
    assert done.stdout == "[0, 0, 0, 0] True\n", done.stderr


def test_a_fault_is_a_signal(each_way: Lab) -> None:
    done = each_way.guest.run(["python3", "-c", "import ctypes; ctypes.string_at(8)"], timeout_s=20)
    assert done.returncode == -11


def test_a_socket_that_the_host_refuses_is_the_guests_own(each_way: Lab) -> None:
    """The filter of the kernel's process does not decide about its programs (skblab.host.jail)."""
    pair = (
        "import socket; a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1)); socket.socket(socket.AF_NETLINK, 3)"
    )
    done = each_way.guest.run(["python3", "-c", pair], timeout_s=20)
    assert done.stdout == "b'x'\n", done.stderr


@pytest.mark.parametrize(("series", "root", "seccomp"), [
    (NEWEST, "host", True), (NEWEST, "/", False), (NEWEST, "", False), (DEFAULT, "host", False),
])  # fmt: skip
def test_programs_of_this_machine_are_trusted_and_no_others(series: str, root: str, *, seccomp: bool) -> None:
    with Lab(series=series, root=root) as lab:
        assert (BY_SECCOMP in lab.console.text()) == seccomp


def test_a_disks_programs_are_not(debian_disk: object) -> None:
    with Lab(series=NEWEST, disks=[f"{debian_disk}"], memory_mib=128, boot_timeout_s=60) as lab:
        assert BY_PTRACE in lab.console.text()


def test_a_kernel_without_it_says_so(image: Image) -> None:
    done = skblab("run", "--root", "host", "--userspace", "seccomp", "--", "true")
    assert done.returncode == 2
    assert f"{image.name} runs the guest's programs by ptrace alone\n" in done.stderr
    assert "--series 7.3" in done.stderr
    with pytest.raises(UsageError, match="no such userspace: magic"):
        LabSpec(userspace="magic")
