"""What a guest can and cannot reach of this machine: each sentence of docs/explanation/security.md."""

import os
import re
import shutil
import socket
import stat
from collections.abc import Iterator
from contextlib import closing
from errno import EACCES, ECONNREFUSED, ENOENT, ENOSYS, EPERM, EROFS
from pathlib import Path

import pytest

from skblab.image.image import Image
from skblab.image.module import build_own
from skblab.lab import Lab

TOLD = re.compile(r"hostile: (.*): (\S+)$", re.MULTILINE)


@pytest.fixture(scope="module")
def module(every_image: Image, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A module that makes the host's system calls."""
    directory = tmp_path_factory.mktemp("hostile")
    (directory / "Kbuild").write_text("obj-m := hostile.o\n")
    shutil.copy(Path(__file__).with_name("hostile.c"), directory)
    (built,) = build_own(every_image.path, directory)
    return built


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("nobody's business\n")
    return path


def came_of(lab: Lab) -> tuple[dict[str, int], dict[str, set[str]]]:
    """Return what the hostile kernel's calls returned, and what it found in directories."""
    text = lab.console.text()
    assert "hostile: done" in text, text
    results: dict[str, int] = {}
    found: dict[str, set[str]] = {}
    for what, value in TOLD.findall(text):
        if what.startswith("in "):
            found.setdefault(what.removeprefix("in "), set()).add(value)
        else:
            results[what] = int(value)
    return results, {directory: names - {".", ".."} for directory, names in found.items()}


def test_a_kernel_without_a_root_finds_its_own_files_alone(every_image: Image, module: Path, secret: Path) -> None:
    with Lab(image=every_image, modules=[f"{module},outside={secret}"]) as lab:
        results, found = came_of(lab)
    assert (results["read outside"], results["write outside"]) == (-ENOENT, -ENOENT)
    assert results["make a directory"] == -EROFS
    files = {every_image.path.resolve().parts[1], "lib64", "usr", "tmp", "proc", "dev"}
    assert found["/"] <= files
    assert found["/proc"] == {"cpuinfo"}
    assert found["/dev"] == {"null", "random", "shm", "pts", "ptmx"}
    assert found["/dev/shm"] == {"guest"}


def test_nothing_undoes_it(every_image: Image, module: Path) -> None:
    with Lab(image=every_image, root="host", modules=[str(module)]) as lab:
        results, _ = came_of(lab)
    assert (results["capabilities"], results["bounding set"], results["no new privileges"]) == (0, 0, 1)
    refused = ("remount", "mount", "unmount", "change root", "make a device", "leave namespaces",
               "fork into namespaces", "io_uring", "keyring", "32-bit number", "vsock", "netlink")  # fmt: skip
    assert {name: results[name] for name in refused} == dict.fromkeys(refused, -EPERM)
    assert results["fork by clone3"] == -ENOSYS


def test_a_guest_of_the_hosts_files_reads_and_does_not_write(
    every_image: Image, module: Path, secret: Path, tmp_path: Path
) -> None:
    node = tmp_path / "zero"
    words = f"{module},inside={secret},device={node}"
    if os.geteuid() == 0:
        os.mknod(node, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with Lab(image=every_image, root="host", modules=[words]) as lab:
        results, found = came_of(lab)
        lab.agent.wait_ready()
        said = lab.guest.run(["sh", "-c", "mount -t hostfs none /mnt -o /var/tmp; echo x >/mnt/x"])
        assert "Read-only file system" in said.stderr
        assert said.returncode
    assert results["read inside"] > 0
    assert (results["write inside"], results["remove inside"]) == (-EROFS, -EROFS)
    assert results["open device"] == (-EACCES if os.geteuid() == 0 else -ENOENT)
    assert found["/proc"] == {"cpuinfo"}
    assert secret.exists()
    assert not Path("/var/tmp/x").exists()


def test_a_guest_of_a_directory_reads_nothing_else(every_image: Image, module: Path, secret: Path) -> None:
    directory = secret.parent / "given"
    directory.mkdir()
    (directory / "file").write_text("for the guest\n")
    (directory / "way out").symlink_to(secret)
    words = f"{module},outside={secret},inside={directory}/file"
    with Lab(image=every_image, root=str(directory), modules=[words]) as lab:
        results, _ = came_of(lab)
    assert (results["read outside"], results["write outside"]) == (-ENOENT, -ENOENT)
    assert results["read inside"] > 0
    assert results["write inside"] == -EROFS


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "server"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        yield path


def test_it_reaches_no_server_of_this_machine(every_image: Image, module: Path, server: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        words = f"{module},server={server},port={listener.getsockname()[1]}"
        with Lab(image=every_image, root="host", modules=[words]) as lab:
            results, _ = came_of(lab)
    assert (results["stream socket"], results["sequenced socket"]) == (-EPERM, -EPERM)
    assert results["datagram socket to a stream server"] < 0
    assert results["connect to loopback"] == -ECONNREFUSED


def test_it_reaches_the_labs_processes_by_signals_alone(every_image: Image, module: Path) -> None:
    with Lab(image=every_image, modules=[str(module)]) as lab:
        results, _ = came_of(lab)
        assert results["signal to process 1"] == 0  # which the host's kernel keeps from it (pid_namespaces(7))
        assert results["trace process 1"] == -EPERM
        assert lab.run(["true"]).returncode == 0
