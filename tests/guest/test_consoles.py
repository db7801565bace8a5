"""Virtual consoles: a login on the second of a Debian's six, shells on those of a directory, all of them in tmux."""

import os
from pathlib import Path

import pytest

from skblab.errors import UsageError
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import Person, eventually_nothing, plain, read_until, remains, skblab

SERVER = 'use IO::Socket::INET; IO::Socket::INET->new(Listen => 1, LocalPort => 80)->accept->print("perl")'


@pytest.mark.timeout(900)  # the first time, it is built
def test_a_debian_is_logged_into_on_console_two_of_six(image: Image, debian_disk: Path, tmp_path: Path) -> None:
    before = remains()
    name = f"six-{os.getpid()}"
    up = skblab("up", name, "--disk", f"{tmp_path}/d.cow,{debian_disk}", "--consoles", "6", "--memory", "128",
                "--image", str(image.path))  # fmt: skip
    assert up.returncode == 0, up.stderr
    try:
        person = Person("console", name, "2")
        person.reads("debian tty2")
        person.types(b"root\r")
        person.reads("debian:~#")
        person.types(b"tty; ping -c1 host; echo e''nd\r")
        said = person.reads("end\n")
        assert "/dev/tty2" in said
        assert "1 received" in said
        person.types(b"\x1d")
        assert person.program.wait(20) == 0
        os.close(person.terminal)
        with Lab.join(name) as lab:
            read_until(lab.terminals[5].fd, lambda text: "debian tty6" in plain(text), within_s=60)
            assert lab.guest.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    finally:
        assert skblab("down", name).returncode == 0
    assert eventually_nothing(before) == []


@pytest.mark.timeout(900)
def test_commands_on_a_disk(every_image: Image, debian_disk: Path, tmp_path: Path) -> None:
    with Lab(image=every_image, disks=[f"{tmp_path}/d.cow,{debian_disk}"], memory_mib=128,
             commands=[f"exec perl -e '{SERVER}'"]) as lab:  # fmt: skip
        assert lab.run(["curl", "-s", "--http0.9", "http://guest/"], timeout_s=20).stdout == "perl"
        assert lab.guest.run(["sh", "-c", "pwd; cat /etc/hostname"]).stdout == "/root\ndebian\n"
        lab.guest.copy_in(Path(__file__), "/root/")
        lab.guest.copy_out(f"/root/{Path(__file__).name}", tmp_path / "back")
        assert (tmp_path / "back").read_bytes() == Path(__file__).read_bytes()


def test_each_console_of_a_directory_has_a_shell(every_image: Image) -> None:
    with Lab(image=every_image, root="host", consoles=3) as lab:
        for number, terminal in enumerate(lab.terminals, start=1):
            read_until(terminal.fd, lambda text: "guest#" in text)
            os.write(terminal.fd, b"tty; echo e''nd\r")
            assert f"/dev/tty{number}\r" in read_until(terminal.fd, lambda text: "end\r" in text)


def test_consoles_that_are_not_there() -> None:
    with pytest.raises(UsageError, match="no 16 consoles"):
        Lab(root="host", consoles=16)
    name = f"few-{os.getpid()}"
    assert skblab("up", name, "--root", "host", "--consoles", "2").returncode == 0
    try:
        refused = skblab("console", name, "3")
        assert (refused.returncode, "has no console 3" in refused.stderr, "it has 2" in refused.stderr) == (
            2,
            True,
            True,
        )
    finally:
        assert skblab("down", name).returncode == 0


def test_windows_of_tmux(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMUX_TMPDIR", str(tmp_path))
    monkeypatch.delenv("TMUX", raising=False)
    name = f"tmux-{os.getpid()}"
    assert skblab("up", name, "--root", "host", "--consoles", "3").returncode == 0
    try:
        person = Person("console", name, "--tmux")
        person.reads("guest#")
        windows = process.run(["tmux", "list-windows", "-t", f"skblab-{name}", "-F", "#W"]).stdout
        assert windows.splitlines() == ["console 1", "console 2", "console 3"]
        process.run(["tmux", "select-window", "-t", f"skblab-{name}:=console 2"]).check_returncode()
        person.reads("guest#")
        person.types(b"tty\r")
        person.reads("/dev/tty2")
        again = skblab("console", name, "--tmux")
        assert again.stdout == f"tmux attach -t skblab-{name}\n"
    finally:
        assert skblab("down", name).returncode == 0
    person.program.wait(20)  # the session ends with the lab
    os.close(person.terminal)
