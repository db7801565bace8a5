"""What a guest can and cannot reach of this machine: every sentence of docs/explanation/security.md."""

import os
import re
import shutil
import socket
import stat
import sys
from collections.abc import Iterator
from contextlib import closing
from errno import EACCES, ECONNREFUSED, ENOENT, ENOSYS, EPERM, EROFS, ESRCH
from pathlib import Path

import pytest

from skblab.guest.disk import create
from skblab.host import jail
from skblab.image.image import Image
from skblab.image.module import build_own
from skblab.lab import Lab
from support import open_files, unshared

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
               "fork into namespaces", "io_uring", "keyring", "32-bit number", "vsock", "netlink",
               "packet socket", "perf events", "bpf", "userfaultfd")  # fmt: skip
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
    with Lab(image=every_image, modules=[f"{module},stranger={os.getpid()}"]) as lab:
        results, _ = came_of(lab)
        assert results["signal to a stranger"] == -ESRCH
        assert results["signal to process 1"] == 0  # the host's kernel protects process 1 from it (pid_namespaces(7))
        assert results["trace process 1"] == -EPERM
        assert lab.run(["true"]).returncode == 0


def test_a_command_is_handed_what_it_is_given_and_no_directory(image: Image, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with Lab(image=image, root="host") as lab:
        lab.agent.wait_ready()
        with out.open("wb") as file, lab.guest.popen(["echo", "written by the guest"], stdout=file) as command:
            assert command.wait(20) == 0
        directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
        with lab.guest.popen(["sh", "-c", "readlink /proc/self/fd/0"], stdin=directory, stdout=-1) as command:
            said, _ = command.communicate(timeout=20)
        os.close(directory)
        opened = {*open_files(lab.guest.pid).values()}
    assert out.read_text() == "written by the guest\n"
    assert said == b"anon_inode:[host]\n"
    assert str(tmp_path) not in opened


def test_a_disk_is_written_by_any_name(image: Image, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))
    (tmp_path / "short").symlink_to(disk)
    with Lab(image=image, root="host", kernel_arguments=[f"ubd0={tmp_path}/short"]) as lab:
        lab.agent.wait_ready()
        lab.guest.run(["sh", "-c", "echo written >/dev/ubda; sync"], check=True)
    assert disk.read_bytes().startswith(b"written")


def test_nothing_of_this_machine_is_open_in_the_kernels_process(image: Image) -> None:
    with Lab(image=image) as lab:
        opened = {*open_files(lab.guest.pid).values()}
    files = {path.removesuffix(" (deleted)") for path in opened if path.startswith("/")}
    inside = ("/dev/null", "/dev/net/tun", "/memfd:", "/dev/shm/", "/dev/pts/")
    assert {path for path in files if not path.startswith(inside)} == set()


def test_of_a_cow_file_its_backing_file_is_not_written(every_image: Image, module: Path, tmp_path: Path) -> None:
    backing, changed = tmp_path / "backing", tmp_path / "changed"
    backing.write_bytes(bytes(1 << 20))
    create(changed, backing)
    arguments = [f"ubd0={changed}"]
    with Lab(image=every_image, modules=[f"{module},inside={backing}"], kernel_arguments=arguments) as lab:
        assert came_of(lab)[0]["write inside"] == -EROFS
    with Lab(image=every_image, modules=[f"{module},inside={changed}"], kernel_arguments=arguments) as lab:
        assert came_of(lab)[0]["write inside"] > 0


@pytest.mark.parametrize(("scope", "kept"), [("0", 0), ("2", 1 << jail.CAP_SYS_PTRACE)])
def test_yama_alone_keeps_a_capability(tmp_path: Path, scope: str, kept: int) -> None:
    (tmp_path / "scope").write_text(f"{scope}\n")
    script = (
        f"from skblab.host import jail; jail.YAMA = {str(tmp_path / 'scope')!r}; jail._drop_capabilities(); "
        "print(open('/proc/self/status').read())"
    )
    said = unshared(then=[sys.executable, "-c", script]).stdout
    assert re.findall(r"CapBnd:\s*(\w+)", said) == [f"{kept:016x}"]
    assert "NoNewPrivs:\t1" in said
