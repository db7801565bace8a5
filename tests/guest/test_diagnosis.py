"""Every boot that goes wrong says what it is and what to do about it; each is a real boot of a real kernel."""

import gzip
import os
import re
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from skblab.errors import BootFailed, GuestLost, MissingPrerequisite, SkblabError, Timeout
from skblab.guest import initramfs
from skblab.guest.boot import Boot, Guest
from skblab.guest.console import Console
from skblab.guest.diagnosis import LEAST_MIB, LEAST_MIB_KASAN, diagnose
from skblab.host import process
from skblab.host.namespace import Namespaces
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.lab import Lab
from support import SKBLAB

HOSTS_FILES = ("rdinit=/none", "root=/dev/root", "rootfstype=hostfs", "rootflags=/")
MACHINE_OF_ELF = 18  # offset of e_machine, elf(5)
ARM = 0x28


def why(
    image: Image, *extra: str, memory_mib: int = 64, kernel: Path | None = None, first_files: Path | None = None,
    before: tuple[str, ...] = (), limit: str = "", timeout_s: float = 10,
) -> SkblabError:  # fmt: skip
    """Boot a kernel that does not come up; return the error.

    :param before: a program to run inside the lab first
    :param limit: an option of prlimit(1) for the lab's processes
    """
    archive = first_files or initramfs.ensure(image.path)
    boot = Boot(kernel or image.kernel, archive, memory_mib=memory_mib, timeout_s=timeout_s, extra=extra)
    with Namespaces(f"why-{os.getpid()}") as namespaces, closing(Console()) as console:
        if before:
            command = process.start(namespaces.command(before), stdout=subprocess.PIPE, pass_fds=[namespaces.pidfd])
            assert process.finish(command, timeout_s=20).returncode == 0
        if limit:
            process.run(["prlimit", f"--pid={namespaces.pid}", limit]).check_returncode()
        with pytest.raises(SkblabError) as caught:
            Guest.boot(boot, namespaces, console).close()
    assert caught.value.hint
    return caught.value


def program(directory: Path, content: bytes, mode: int = 0o755) -> str:
    path = directory / "program"
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


def of_another_machine() -> bytes:
    content = bytearray(Path("/bin/true").read_bytes())
    content[MACHINE_OF_ELF] = ARM
    return bytes(content)


@dataclass(frozen=True)
class Init:
    content: bytes
    mode: int
    words: str


@pytest.mark.parametrize(
    "init",
    [
        Init(b"#!/bin/sh\n", 0o644, "program is not executable"),
        Init(of_another_machine(), 0o755, "is no program for this kernel: of another architecture"),
        Init(b"#!/no/such/interpreter\n", 0o755, "or not the interpreter that its first line"),
        Init(b"#!/bin/sh\nexit 3\n", 0o755, "first process has ended: exit status 3"),
        Init(b"#!/usr/bin/python3\nimport ctypes; ctypes.string_at(0)\n", 0o755, "has ended: signal SIGSEGV"),
    ],
    ids=lambda init: init.words,
)
def test_an_init_that_is_none(every_image: Image, tmp_path: Path, init: Init) -> None:
    error = why(every_image, *HOSTS_FILES, f"init={program(tmp_path, init.content, init.mode)}")
    assert isinstance(error, BootFailed)
    assert init.words in error.what
    assert "Kernel panic - not syncing: " in error.found


def test_no_init(every_image: Image, tmp_path: Path) -> None:
    assert "there is no /none in the guest" in why(every_image, *HOSTS_FILES, "init=/none").what
    empty = (*HOSTS_FILES[:-1], f"rootflags={tmp_path}")
    assert "the guest's root has none of /sbin/init" in why(every_image, *empty).what


def test_no_root(every_image: Image, tmp_path: Path) -> None:
    for root in ("/dev/ubda", "98:0", "/dev/ram7"):
        assert f"root {root.removeprefix('/dev/')} is not there: No such device" in why(
            every_image, "rdinit=/none", f"root={root}"
        ).what.replace("root /dev/", "root ")
    missing = f"rootflags={tmp_path}/none"
    assert "rootflags= names one that is not there" in why(every_image, *HOSTS_FILES[:-1], missing).what


def test_a_disk_without_a_file_system(image: Image, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    error = why(image, "rdinit=/none", f"ubd0={disk}", "root=/dev/ubda")
    assert "has no file system that this kernel knows" in error.what


@pytest.mark.parametrize("damage", ["cut off", "garbage", "compressed", "empty", "not there"])
def test_first_files_that_are_damaged(every_image: Image, tmp_path: Path, damage: str) -> None:
    good = initramfs.ensure(every_image.path).read_bytes()
    contents: dict[str, bytes] = {
        "cut off": good[: len(good) // 3],
        "garbage": b"garbage" * 1000,
        "compressed": gzip.compress(good),
        "empty": b"",
    }
    path = tmp_path / "first.cpio"
    if damage in contents:
        path.write_bytes(contents[damage])
    error = why(every_image, first_files=path)
    assert "first files" in error.what
    assert str(path) in error.hint


def test_the_agent_of_another_image(every_image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    other = find_image("6.1" if every_image.series == "6.12" else "6.12")
    archive = initramfs.ensure(other.path)
    monkeypatch.setattr("skblab.guest.initramfs.ensure", lambda _: archive)
    with pytest.raises(GuestLost, match="agent's module is of another kernel") as caught, Lab(image=every_image) as lab:
        lab.rule("icmp_rcv = trace")
    assert "skblab image build" in caught.value.hint


def cut(content: bytearray) -> None:
    del content[5_000_000:]


def no_elf(content: bytearray) -> None:
    content[:4] = b"none"


def scramble(content: bytearray) -> None:
    content[0x1000:0x400000] = bytes(0x400000 - 0x1000)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (cut, "its file is damaged"),
        (no_elf, "is no program for this machine"),
        (scramble, "damaged"),
    ],
)
def test_a_damaged_kernel(image: Image, tmp_path: Path, damage: Callable[[bytearray], None], words: str) -> None:
    content = bytearray(image.kernel.read_bytes())
    damage(content)
    error = why(image, kernel=Path(program(tmp_path, bytes(content))))
    assert words in error.what
    assert "skblab image" in error.hint


def test_a_kernel_that_may_not_be_executed(image: Image, tmp_path: Path) -> None:
    kernel = Path(program(tmp_path, image.kernel.read_bytes(), 0o644))
    assert "may not be executed" in why(image, kernel=kernel).what
    kernel.chmod(0o755)
    noexec = ("sh", "-c", f"mount --bind {tmp_path} {tmp_path} && mount -o remount,bind,noexec {tmp_path}")
    error = why(image, kernel=kernel, before=noexec)
    assert isinstance(error, MissingPrerequisite)
    assert "may not be executed" in error.what
    assert "remount,exec" in error.hint


def test_a_kernel_whose_loader_is_not_there(image: Image, tmp_path: Path) -> None:
    content = image.kernel.read_bytes().replace(b"/ld-linux-x86-64.so.2\0", b"/ld-linux-x86-64.so.9\0")
    assert "or the loader that it names" in why(image, kernel=Path(program(tmp_path, content))).what


@pytest.mark.parametrize("memory_mib", [0, 4, 16, 17])
def test_too_little_memory(every_image: Image, memory_mib: int) -> None:
    with pytest.raises(BootFailed, match="does not boot"), Lab(image=every_image, memory_mib=memory_mib):
        pass
    assert "memory is too small" in why(every_image, memory_mib=memory_mib or 1).what


@pytest.mark.parametrize("of_the_machines", [16, 1 << 20, 1 << 70])
def test_more_memory_than_the_machine_has(image: Image, of_the_machines: int) -> None:
    """Else one size boots and ends once its memory is used, and another panics without a word of its size."""
    there_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    with (
        pytest.raises(MissingPrerequisite, match="no room for a guest") as caught,
        Lab(image=image, memory_mib=there_mib * of_the_machines),
    ):
        pass
    assert "this machine has" in caught.value.found
    assert "a smaller --memory" in caught.value.hint


def test_the_least_memory_is_enough(every_image: Image) -> None:
    replies = "icmp[icmptype] == icmp-echoreply"
    with (
        Lab(image=every_image, memory_mib=LEAST_MIB) as lab,
        lab.hold("icmp_rcv") as hold,
        lab.probe("ip_output", replies) as answered,
    ):
        flood = lab.popen(["ping", "-f", "-c", "500", "-W", "5", "guest"], stdout=subprocess.PIPE)
        for _ in range(500):
            hold.take()[0].release()
        assert len(answered.take(500)) == 500
        said = process.finish(flood, timeout_s=60).stdout
        # ping waits for its last reply for twice the longest RTT alone (iputils ping_common.c __schedule_exit()).
        assert re.search(r"500 packets transmitted, (500|499) received", said), said


def test_the_least_memory_with_kasan() -> None:
    image = find_image(variant="kasan")
    with pytest.raises(BootFailed, match="KASAN"), Lab(image=image, memory_mib=64):
        pass
    assert "memory is too small" in why(image, memory_mib=40).what
    with Lab(image=image, memory_mib=LEAST_MIB_KASAN) as lab:
        assert lab.run(["ping", "-c", "50", "-i", "0.002", "-W", "5", "guest"], timeout_s=60).returncode == 0


def test_a_size_that_is_none(image: Image) -> None:
    assert "mem= is not a size" in why(image, "mem=plenty").what


def test_the_kernels_help(image: Image) -> None:
    assert "printed its help" in why(image, "--help").what


def test_no_room_for_the_guests_memory(every_image: Image) -> None:
    error = why(every_image, before=("mount", "-o", "remount,size=1m", "/dev/shm"))
    assert isinstance(error, MissingPrerequisite)
    assert "no more memory for the guest" in error.what
    error = why(every_image, before=("mount", "-o", "remount,noexec", "/dev/shm"))
    assert "nothing there may be executed" in error.what


@pytest.mark.parametrize(
    ("limit", "words", "hint"),
    [
        ("--as=200000000", "does not fit into the address space", "ulimit -v unlimited"),
        ("--fsize=10000000", "larger than a file may be", "ulimit -f unlimited"),
    ],
)
def test_limits_of_a_process(image: Image, limit: str, words: str, hint: str) -> None:
    error = why(image, limit=limit, memory_mib=512)
    assert isinstance(error, MissingPrerequisite)
    assert words in error.what
    assert hint in error.hint


def test_a_guest_that_hangs_shows_what_its_init_is_at(every_image: Image, tmp_path: Path) -> None:
    init = program(tmp_path, b"#!/bin/sh\nsleep 1000\n")
    error = why(every_image, *HOSTS_FILES, f"init={init}", timeout_s=1.5)
    assert isinstance(error, Timeout)
    assert "its first process:" in error.found
    assert "do_wait" in error.found
    assert "/proc/mconsole" in error.hint


def test_a_guest_that_stands_still_at_boot_says_that_it_does(image: Image) -> None:
    error = why(image, *HOSTS_FILES, "init=/bin/sh", "loglevel=1", timeout_s=0.001)
    assert isinstance(error, Timeout)
    assert "its mconsole: " in error.found or "its first process:" in error.found


def test_the_command_line_says_it(image: Image) -> None:
    done = process.run([*SKBLAB, "run", "--image", image.path, "--memory", "8", "--", "true"], timeout_s=60)
    assert done.returncode == BootFailed.exit_status
    assert done.stderr.startswith("skblab: a guest with 8 MiB of memory does not boot\n")
    assert "hint: --memory 64" in done.stderr


def test_what_is_not_recognised_is_left_alone() -> None:
    assert diagnose("Linux version 6.12\nKernel panic - not syncing: something new", "signal SIGABRT") is None
