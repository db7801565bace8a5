"""A guest that boots, one that does not, and the error."""

import os
import select
import shutil
import signal
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest

from skblab.errors import BootFailed, GuestLost, Timeout, UsageError
from skblab.guest import initramfs
from skblab.guest.boot import Boot, Guest
from skblab.guest.console import Console
from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.host.namespace import Namespaces
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.summary import ETH_P_ARP

ETH_P_ALL = 3  # a socket of one protocol does not receive outgoing packets (packet(7))


@pytest.mark.parametrize("link", ["tap", "veth"])
@pytest.mark.parametrize("address", ["guest", "192.168.10.1", "fd00:10::1"])
def test_the_guest_answers_on_every_link(image: Image, link: str, address: str) -> None:
    with Lab(image=image, link=link) as lab:
        done = lab.run(["ping", "-c", "2", "-i", "0.01", "-W", "5", address], timeout_s=20)
        assert done.returncode == 0, done.stdout + done.stderr
        assert lab.namespaces.link == link


def test_every_series_boots(every_image: Image) -> None:
    with Lab(image=every_image) as lab:
        assert lab.run(["ping", "-c", "1", "-W", "5", "guest"], timeout_s=20).returncode == 0
        assert every_image.release in lab.console.text()
        assert lab.guest.mconsole.version() == f"Linux {lab_version(lab)}"


def lab_version(lab: Lab) -> str:
    """Return the words of the guest's own uname, from its console: they are the kernel's first."""
    line = next(line for line in lab.console.text().splitlines() if "Linux version" in line)
    release = line.split("Linux version ")[1].split()[0]
    answer = lab.guest.mconsole.version().removeprefix("Linux ")
    assert release in answer
    return answer


def test_labs_run_side_by_side(image: Image) -> None:
    with Lab(image=image) as one, Lab(image=image) as other:
        assert one.name != other.name
        for lab in (one, other):
            assert lab.run(["ping", "-c", "1", "-W", "5", "guest"], timeout_s=20).returncode == 0


def test_the_guests_memory_is_as_asked_for(image: Image) -> None:
    with Lab(image=image, memory_mib=128) as lab:
        assert "mem=128M" in lab.console.text()


def test_a_guest_that_was_booted_once_boots_without_calibrating(image: Image) -> None:
    with Lab(image=image):
        pass
    with Lab(image=image) as lab:
        assert "Calibrating delay loop (skipped)" in lab.console.text()


@pytest.mark.complains("panic")
def test_a_panic_at_boot_is_shown(image: Image) -> None:
    with pytest.raises(BootFailed) as caught, Lab(image=image, kernel_arguments=["rdinit=/none", "init=/none"]):
        pass
    assert "Kernel panic - not syncing: " in caught.value.found
    assert "console tail:" in caught.value.found
    assert "Failed to execute /none" in caught.value.found or "Unable to mount root" in caught.value.found


@pytest.mark.wall_clock
def test_a_guest_that_never_gets_ready(image: Image, tmp_path: Path) -> None:
    init = tmp_path / "init"
    init.write_text("#!/bin/sh\nsleep 1000\n")
    init.chmod(0o755)
    arguments = ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "rdinit=/none", f"init={init}"]
    started = time.monotonic()
    with pytest.raises(Timeout, match=r"not ready within 1\.5 s") as caught:  # noqa: SIM117
        with Lab(image=image, boot_timeout_s=1.5, kernel_arguments=arguments):
            pass
    assert time.monotonic() - started < 10
    assert f"Run {init} as init process" in caught.value.found


def test_a_guest_that_was_killed_is_missed(lab: Lab) -> None:
    os.kill(lab.guest.pid, signal.SIGKILL)
    assert select.select([lab.guest.pidfd], [], [], 5)[0]
    with pytest.raises(GuestLost, match="signal SIGKILL"):
        lab.run(["true"])


def test_a_lab_that_is_not_running() -> None:
    lab = Lab()
    with pytest.raises(UsageError, match="is not running"):
        lab.run(["true"])


def test_a_lab_is_entered_once(lab: Lab) -> None:
    with pytest.raises(UsageError, match="running already"), lab:
        pass


def test_the_first_files_are_made_once(image: Image, tmp_path: Path) -> None:
    copy = tmp_path / "image"
    shutil.copytree(image.path, copy, copy_function=os.link, ignore=shutil.ignore_patterns("initramfs-*"))
    archive = initramfs.ensure(copy)
    made = archive.stat()
    assert initramfs.ensure(copy) == archive
    assert archive.stat().st_ino == made.st_ino
    assert archive.name == initramfs.ensure(image.path).name


@pytest.mark.wall_clock
def test_a_client_that_was_there_before_the_guest_is_answered_at_once(image: Image) -> None:
    with Namespaces(f"early-{os.getpid()}") as namespaces, closing(Console()) as console:
        argv = namespaces.command(["ping", "-n", "-c", "1", "-W", "10", "192.168.10.1"])
        client = process.start(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[namespaces.pidfd])
        with namespaces.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire:
            wire.settimeout(10)
            while wire.recvfrom(2048)[1][1] != ETH_P_ARP:  # it asks for the guest's address, without an answer
                pass
        with closing(Guest.boot(Boot(image.kernel, initramfs.ensure(image.path)), namespaces, console)):
            (reply,) = parse_ping(process.finish(client, timeout_s=20).stdout)
    assert reply.rtt_ms < 500
