"""Disks: a Debian boots from one; a bad one is an error before the kernel could panic."""

import fcntl
import json
import os
import re
import shutil
import signal
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import DiskError, DiskInUse, UsageError
from skblab.guest import cow, disk
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import read_until, skblab

INIT = """
#include <fcntl.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>
int main(void)
{
	char text[64] = "";
	int fd = open("/boots", O_RDWR | O_CREAT | O_APPEND, 0644);
	int tty = open("/dev/tty1", O_RDWR);

	write(fd, "boot;", 5);
	fsync(fd);
	pread(fd, text, sizeof(text) - 1, 0);
	dprintf(tty, "own init; %s\\n", text);
	for (;;)
		pause();
}
"""


def make_disk(path: Path, init: bytes | None) -> Path:
    """Make an ext4 image with a /sbin/init, or without."""
    tree = path.with_suffix(".tree")
    (tree / "sbin").mkdir(parents=True)
    (tree / "dev").mkdir()
    if init is not None:
        (tree / "sbin/init").write_bytes(init)
        (tree / "sbin/init").chmod(0o755)
    process.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-d", tree, path, "16M"]).check_returncode()
    return path


@pytest.fixture(scope="session")
def init_program(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A static program that counts its boots on the disk."""
    directory = tmp_path_factory.mktemp("init")
    (directory / "init.c").write_text(INIT)
    process.run(["gcc", "-static", "-s", "-o", directory / "init", directory / "init.c"]).check_returncode()
    return (directory / "init").read_bytes()


@pytest.fixture
def image_file(tmp_path: Path, init_program: bytes) -> Path:
    """A small disk that boots."""
    return make_disk(tmp_path / "root.ext4", init_program)


@pytest.fixture
def cow_file(image_file: Path) -> Path:
    """A COW file of it."""
    path = image_file.with_name("root.cow")
    disk.create(path, image_file)
    return path


def boots(lab: Lab) -> int:
    """Wait for the disk's own init; return how often it was booted."""
    assert lab.terminal
    said = read_until(lab.terminal.fd, lambda text: "own init; " in text and text.endswith("\n"))
    return said.count("boot;")


@pytest.mark.timeout(900)  # the first time, it is built
def test_a_debian_is_logged_into_and_pings_the_host_side(every_image: Image, debian_disk: Path, tmp_path: Path) -> None:
    with Lab(image=every_image, disks=[f"{tmp_path}/d.cow,{debian_disk}"], memory_mib=128) as lab:
        assert lab.terminal
        read_until(lab.terminal.fd, lambda text: "login:" in text, within_s=80)
        os.write(lab.terminal.fd, b"root\r")
        read_until(lab.terminal.fd, lambda text: "debian:~#" in text)
        os.write(lab.terminal.fd, b"ping -c1 host; readlink -f /sbin/init; echo e''nd\r")
        said = read_until(lab.terminal.fd, lambda text: "end\r" in text)
        assert "1 received" in said
        assert "/lib/systemd/systemd" in said
        assert lab.run(["ping", "-c1", "guest"], timeout_s=10).returncode == 0
        with lab.probe("icmp_rcv") as probe:  # the agent is there still
            lab.run(["ping", "-c1", "guest"], timeout_s=10)
            assert probe.take()


def test_uml_and_we_read_the_same_header_and_changes(image: Image, image_file: Path) -> None:
    ours, theirs = image_file.with_name("ours.cow"), image_file.with_name("theirs.cow")
    made = disk.create(ours, image_file)
    with Lab(image=image, disks=[str(image_file.with_name("other.cow")) + f",{image_file}"]) as lab:
        boots(lab)
        # Outside a lab, whose kernel is confined, because it makes a file.
        argv = [str(image.kernel), "mem=64M", f"ubd0={theirs},{image_file}", "root=/dev/ubda", "init=/none", "con=null",
                "ssl=null", "con0=null,fd:1", f"uml_dir={image_file.parent}"]  # fmt: skip
        assert "Requested init /none failed" in lab.run(argv, timeout_s=30).stdout
    assert disk.inspect(theirs) == made
    with ours.open("rb") as one, theirs.open("rb") as other:
        named = 32 + len(os.fsencode(image_file)) + 1  # UML leaves what was in its memory behind the name's end
        assert one.read(named) == other.read(named)
    assert ours.stat().st_size == theirs.stat().st_size
    written = image_file.with_name("other.cow")
    assert disk.changed_sectors(written, disk.inspect(written) or made) > 0
    whole, moo = image_file.with_name("whole"), image_file.with_name("moo")
    disk.merge(written, whole)
    process.run(["uml_moo", written, moo], timeout_s=30).check_returncode()
    assert whole.read_bytes() == moo.read_bytes()


@pytest.mark.parametrize("how", ["lab", "kill -9"])
def test_what_was_written_is_there_at_the_next_boot(every_image: Image, cow_file: Path, how: str) -> None:
    with Lab(image=every_image, disks=[str(cow_file)]) as lab:
        assert boots(lab) == 1
        if how == "kill -9":
            os.kill(lab.namespaces.pid, signal.SIGKILL)
    with Lab(image=every_image, disks=[str(cow_file)]) as lab:
        assert boots(lab) == 2
        if how == "kill -9":
            assert "recovery complete" in lab.console.text()


def test_the_same_disk_in_a_second_lab_is_refused_with_the_firsts_name(image: Image, cow_file: Path) -> None:
    with Lab("holder-of-it", image=image, disks=[str(cow_file)]) as first:
        with pytest.raises(DiskInUse, match="in use by lab holder-of-it, pid") as caught, Lab(disks=[str(cow_file)]):
            pass
        assert caught.value.hint == f"kill {os.getpid()}"
        first.keep()
        with pytest.raises(DiskInUse) as caught:
            disk.Disk(cow_file).ready()
        assert caught.value.hint == "skblab down holder-of-it"
        told = json.loads(skblab("disk", "info", str(cow_file), "--json").stdout)
        assert told["in_use_by"] == {"lab": "holder-of-it", "pid": first.guest.pid}
    assert skblab("down", "holder-of-it").returncode == 0
    with Lab(image=image, disks=[str(cow_file)]):
        pass


def test_a_disk_that_is_taken_after_the_look_at_it(
    every_image: Image, cow_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lab(image=every_image, disks=[str(cow_file)]):
        monkeypatch.setattr(disk.Disk, "ready", lambda _: None)
        with pytest.raises(DiskInUse, match="locked by another process"):  # noqa: SIM117
            with Lab(image=every_image, disks=[str(cow_file)]):
                pass


def test_what_goes_with_no_disk() -> None:
    with pytest.raises(UsageError, match="one root"):
        Lab(root="host", disks=["a"])


def test_several_labs_have_one_backing_file(image: Image, image_file: Path) -> None:
    one, other = (f"{image_file.with_name(name)},{image_file}" for name in ("one.cow", "other.cow"))
    with Lab(image=image, disks=[one]) as first, Lab(image=image, disks=[other]) as second:
        assert boots(first) == boots(second) == 1
        with pytest.raises(DiskInUse, match=r"root\.ext4 is in use by lab"), Lab(image=image, disks=[str(image_file)]):
            pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")  # the child only locks and stops
def test_a_disk_that_no_lab_has(cow_file: Path) -> None:
    with cow_file.open("r+b") as file:
        child = os.fork()
        if child == 0:
            fcntl.lockf(file, fcntl.LOCK_EX)
            signal.raise_signal(signal.SIGSTOP)
            os._exit(0)
        os.waitpid(child, os.WUNTRACED)
        try:
            with pytest.raises(DiskInUse, match=f"pid {child}: "):
                disk.Disk(cow_file).ready()
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def test_a_backing_file_that_was_changed_since(cow_file: Path, image_file: Path) -> None:
    os.utime(image_file, (1, 1))
    with pytest.raises(DiskError, match="was changed since") as caught:
        disk.Disk(cow_file).ready()
    assert "1 now" in caught.value.found


@pytest.mark.parametrize("size", ["", "0", "-1", "plenty", "1.5G", "255M", "17T", "1E", "9" * 5000])
def test_a_size_that_no_debian_has(tmp_path: Path, size: str) -> None:
    """Else mmdebstrap works for half a minute, and mke2fs refuses it then."""
    done = skblab("disk", "build", f"--size={size}", str(tmp_path / "disk"), timeout_s=10)
    assert done.returncode == 2
    assert "256M to 16T" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_backing_file_of_another_size(cow_file: Path, image_file: Path) -> None:
    os.truncate(image_file, 1 << 20)
    with pytest.raises(DiskError, match="another size"):
        disk.Disk(cow_file).ready()


def test_a_backing_file_that_is_gone(cow_file: Path, image_file: Path) -> None:
    image_file.unlink()
    with pytest.raises(DiskError, match="cannot be found"):
        disk.Disk(cow_file).ready()


def test_a_cow_file_of_another_backing_file(cow_file: Path, image_file: Path) -> None:
    other = shutil.copy(image_file, image_file.with_name("other"))
    with pytest.raises(DiskError, match="of another file than"):
        disk.Disk(cow_file, Path(other)).ready()


def test_a_cow_file_of_unknown_version(cow_file: Path) -> None:
    with cow_file.open("r+b") as file:
        file.write(struct.pack(">II", cow.MAGIC, 9))
    with pytest.raises(DiskError, match=r"root\.cow: a COW file of version 9"):
        disk.Disk(cow_file).ready()


def test_no_disk_at_all(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="cannot read"):
        disk.Disk(tmp_path / "none").ready()
    with pytest.raises(DiskError, match="is no disk image"):
        disk.Disk(tmp_path).ready()


@pytest.mark.parametrize("text", ["", "a,", ",b", "a,b,c"])
def test_what_is_no_disk(text: str) -> None:
    with pytest.raises(UsageError, match="not a disk"):
        disk.Disk.parse(text)


def test_a_path_that_uml_would_split(image_file: Path) -> None:
    renamed = image_file.rename(image_file.with_name("a:b"))
    with pytest.raises(UsageError, match="a colon"):
        disk.Disk(renamed).ready()


def test_a_disk_of_somebody_else(image_file: Path) -> None:
    if os.geteuid() == 0:
        os.chown(image_file, 12345, 12345)
    else:
        image_file.chmod(0o444)
    with pytest.raises(DiskError, match="may not write") as caught:
        disk.Disk(image_file).ready()
    assert "disk create" in caught.value.hint


@pytest.mark.parametrize(("content", "says"), [(b"QFI\xfb", "qcow2"), (b"\x1f\x8b", "gzip"), (b"\x7fELF", "program")])
def test_a_file_that_is_no_image(image: Image, tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "it"
    path.write_bytes(content.ljust(8192, b"\0"))
    with pytest.raises(DiskError, match=says), Lab(image=image, disks=[str(path)]):
        pass


def test_a_disk_without_a_file_system(every_image: Image, tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(bytes(1 << 20))
    with pytest.raises(DiskError, match="no root file system") as caught:  # noqa: SIM117
        with Lab(image=every_image, disks=[str(tmp_path / "empty")]):
            pass
    assert "Can't find ext4 filesystem" in caught.value.found


def test_a_disk_without_an_init(image: Image, tmp_path: Path) -> None:
    path = make_disk(tmp_path / "it", None)
    with pytest.raises(DiskError, match="has no /sbin/init"), Lab(image=image, disks=[str(path)]):
        pass


def test_a_disk_of_another_machine(image: Image, tmp_path: Path, init_program: bytes) -> None:
    arm = bytearray(init_program)
    arm[18:20] = struct.pack("<H", 183)  # e_machine: EM_AARCH64
    path = make_disk(tmp_path / "it", bytes(arm))
    with pytest.raises(DiskError, match="for another machine"), Lab(image=image, disks=[str(path)]):
        pass


def test_a_second_disk_is_there_too(image: Image, cow_file: Path, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(1 << 20))
    with Lab(image=image, disks=[str(cow_file), str(tmp_path / "data")]) as lab:
        boots(lab)
        assert lab.guest.mconsole.config("ubd1").startswith(str(tmp_path / "data"))


@pytest.fixture
def up(cow_file: Path) -> Iterator[str]:
    """A lab that the command line has put up."""
    name = f"disk-{os.getpid()}"
    done = skblab("up", name, "--disk", str(cow_file))
    assert done.returncode == 0, done.stderr
    yield name
    skblab("down", name)


def test_from_the_command_line(up: str, cow_file: Path, tmp_path: Path) -> None:
    done = skblab("run", "--disk", str(cow_file), "--", "true")
    assert done.returncode == 1
    assert f"in use by lab {up}" in done.stderr
    assert f"skblab down {up}" in done.stderr
    made = skblab("disk", "create", str(tmp_path / "two.cow"), "--backing", str(tmp_path / "root.ext4"))
    assert made.returncode == 0, made.stderr
    told = skblab("disk", "info", str(tmp_path / "two.cow")).stdout
    assert re.search(r"changed sectors +0\n", told)
    assert re.search(r"in use by +nobody\n", told)


def test_a_build_that_cannot_be_says_why(tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    assert "is there already" in skblab("disk", "build", str(tmp_path / "there")).stderr
    done = skblab("disk", "build", str(tmp_path / "new"), "--suite", "nonsense")
    assert done.returncode == 3
    assert "no mirror with Debian nonsense" in done.stderr
    done = skblab("disk", "build", str(tmp_path / "new"), PATH=str(tmp_path))
    assert done.returncode == 3
    assert "apt-get install mmdebstrap" in done.stderr
