"""Commands in the guest: their input and output, their end, and what happens when something dies."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import GuestCommandFailed, GuestLost, NoSuchProgram, UsageError
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import eventually_nothing, kill, read_until, remains

EVERY_BYTE = bytes(range(256))
LAST_CLIENT = """
import subprocess
import sys
from skblab import Lab
with Lab.join(sys.argv[1]) as lab:
    command = lab.guest.popen(["sh", "-c", sys.argv[2]], stdout=subprocess.PIPE)
    print(command.stdout.readline().decode(), end="", flush=True)
    sys.stdin.read()
"""
# The shell would print that sleep was hung up on, without a reader, and die of SIGPIPE.
HANGS_UP = """exec 2>/dev/null
trap 'echo hung up >/tmp/told; exit' HUP
sleep 1000 &
until test "$(cat /proc/$!/comm)" = sleep; do :; done
echo runs
wait"""
"""Prints that it was hung up. It `runs` when sleep was executed: a forked copy of the shell loses a signal."""


KILLED_WHILE_IT_FORKS = """
import mmap, os, signal
kept = [mmap.mmap(-1, mmap.PAGESIZE) for _ in range(5000)]  # a fork copies each
for attempt in range(10):
    if not os.fork():
        signal.setitimer(signal.ITIMER_REAL, 0.05 + attempt / 1000)
        while True:
            os.waitpid(os.fork() or os._exit(0), 0)
    print(os.WTERMSIG(os.wait()[1]))
"""


@pytest.fixture(scope="module")
def every_root(every_image: Image) -> Iterator[Lab]:
    """A lab of each series with this machine's programs, for tests that leave it as they found it."""
    with Lab(image=every_image, root="host", memory_mib=128) as lab:
        yield lab


@pytest.fixture(scope="module")
def host_root(image: Image) -> Iterator[Lab]:
    with Lab(image=image, root="host", memory_mib=128) as lab:
        yield lab


def told(lab: Lab) -> str:
    """Return what a command has left in a file, once it is there."""
    waits = "while ! test -s /tmp/told; do sleep 0.01; done; cat /tmp/told; rm /tmp/told"
    return lab.guest.run(["sh", "-c", waits], timeout_s=20).stdout


def test_ten_megabytes_of_every_byte(every_root: Lab) -> None:
    data = EVERY_BYTE * 40960
    assert len(data) == 10 << 20
    done = every_root.guest.run(["cat"], input=data, text=False, timeout_s=60)
    assert (done.stdout == data, done.stderr, done.returncode) == (True, b"", 0)
    counted = every_root.guest.run(["md5sum"], input=data, timeout_s=60)
    assert counted.stdout == process.finish(start_md5(data)).stdout


def start_md5(data: bytes) -> process.Process:
    given, writes = os.pipe()
    running = process.start(["md5sum"], stdin=given, stdout=subprocess.PIPE)
    os.close(given)
    with os.fdopen(writes, "wb") as pipe:
        pipe.write(data)
    return running


def test_streams_status_environment_and_directory(every_root: Lab) -> None:
    guest = every_root.guest
    done = guest.run(
        ["sh", "-c", 'echo "$A"; pwd; cat; echo no >&2; exit 7'], input="in\n", cwd="/etc", env={"A": "b  c"}
    )
    assert (done.stdout, done.stderr, done.returncode) == ("b  c\n/etc\nin\n", "no\n", 7)
    assert guest.run(["sh", "-c", "pwd; echo $HOME"]).stdout == "/tmp\n/tmp\n"
    assert guest.run(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM
    with pytest.raises(subprocess.CalledProcessError, match="status 3"):
        guest.run(["sh", "-c", "exit 3"], check=True)


def test_a_program_that_is_not_there(every_root: Lab) -> None:
    with pytest.raises(NoSuchProgram, match="the guest has no program nonesuch") as raised:
        every_root.guest.run(["nonesuch"])
    assert raised.value.exit_status == 127
    with pytest.raises(NoSuchProgram, match="cannot run /etc/passwd") as raised:
        every_root.guest.run(["/etc/passwd"])
    assert raised.value.exit_status == 126
    with pytest.raises(GuestCommandFailed, match="in that directory"):
        every_root.guest.run(["true"], cwd="/nonesuch")


def test_the_built_in_root_says_that_it_has_no_programs(every_lab: Lab) -> None:
    with pytest.raises(NoSuchProgram, match="no programs at all, but its first process, /init") as raised:
        every_lab.guest.run(["ls"])
    assert "--root host" in raised.value.hint
    assert every_lab.run(["ping", "-c1", "guest"]).returncode == 0


def test_files_are_read_without_a_program(every_lab: Lab) -> None:
    read = every_lab.guest.read
    assert read("/proc/sys/kernel/ostype", "/proc/sys/kernel/hostname").startswith(b"Linux\n")
    assert b"\nIcmp: " in read("/proc/net/snmp")
    assert len(read("/init")) > 4 * 65536  # more than a pipe takes
    assert read("/agent.ko", most_bytes=4) == b"\x7fELF"
    for paths, why in ((("/none",), "No such file"), (("/proc/version", "/proc"), "Is a directory")):
        with pytest.raises(GuestCommandFailed, match=f"cannot read {' '.join(paths)} in the guest") as caught:
            read(*paths)
        assert why in caught.value.found
    with pytest.raises(GuestCommandFailed, match="cannot read /proc/version"):
        read("/proc/version", node="nobody")
    with pytest.raises(UsageError, match="no NUL byte"):
        read("/proc/\0")
    with pytest.raises(UsageError, match="no file to read"):
        read()


def test_one_that_nobody_reads_holds_up_no_other_and_loses_nothing(host_root: Lab) -> None:
    guest = host_root.guest
    with (
        guest.popen(["head", "-c", "100M", "/dev/zero"], stdout=subprocess.PIPE) as much,
        guest.popen(["cat"], stdin=subprocess.PIPE) as waits,
    ):
        for _ in range(20):
            assert guest.run(["echo", "here"], timeout_s=10).stdout == "here\n"
        assert much.poll() is None
        assert waits.poll() is None
        out, _ = much.communicate(timeout=60)
        assert len(out) == 100 << 20
        assert waits.stdin
        waits.stdin.close()
        assert waits.wait(10) == 0


def test_fifty_at_once(host_root: Lab) -> None:
    with contextlib.ExitStack() as stack:
        commands = [
            stack.enter_context(host_root.guest.popen(["sh", "-c", f"read x; echo {number} $x"],
                                                      stdin=subprocess.PIPE, stdout=subprocess.PIPE))
            for number in range(50)
        ]  # fmt: skip
        for number, command in reversed(list(enumerate(commands))):
            assert command.communicate(b"yes\n", timeout=20)[0] == f"{number} yes\n".encode()


def test_a_reader_that_has_enough(host_root: Lab) -> None:
    with host_root.guest.popen(["yes"], stdout=subprocess.PIPE) as yes:
        assert yes.stdout
        assert yes.stdout.read(4) == b"y\ny\n"
        yes.stdout.close()
        assert yes.wait(10) == -signal.SIGPIPE


def test_output_goes_where_it_is_sent(host_root: Lab, tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb", buffering=0) as file:
        file.write(b"before\n")
        with host_root.guest.popen(
            ["sh", "-c", "echo one; echo two >&2"], stdout=file, stderr=subprocess.STDOUT
        ) as command:
            assert command.wait(10) == 0
        assert os.get_blocking(file.fileno())
    assert (tmp_path / "out").read_text() == "before\none\ntwo\n"
    ours, theirs = socket.socketpair()
    with ours, theirs, host_root.guest.popen(["echo", "three"], stdout=theirs.fileno()) as command:
        assert command.wait(10) == 0  # all of its output is copied by then
        assert ours.recv(100) == b"three\n"
        assert os.get_blocking(theirs.fileno())


def test_signals_are_for_all_that_the_command_has_started(host_root: Lab) -> None:
    with host_root.guest.popen(["sh", "-c", "sleep 1000 | cat"], stdout=subprocess.PIPE) as command:
        assert command.stdout
        command.terminate()
        assert command.stdout.read() == b""  # sleep and cat are gone too
        assert command.wait(10) == -signal.SIGTERM
        command.kill()  # it has ended: nothing happens


def test_programs_are_killed_while_they_fork(every_root: Lab) -> None:
    """User Mode Linux's kernel panicked (src/skblab/image/corrections/fork.py)."""
    done = every_root.guest.run(["python3", "-c", KILLED_WHILE_IT_FORKS], check=True, timeout_s=60)
    assert done.stdout.split() == [str(int(signal.SIGALRM))] * 10


def test_a_terminal(every_root: Lab) -> None:
    # A shell's `read` may fail where a signal interrupts it, so a failure ends nothing here.
    script = "trap 'stty size' WINCH; tty; stty size; while :; do read x && echo \"got $x\"; done"
    with every_root.guest.popen(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                terminal=(33, 101), env={"TERM": "vt100"}) as command:  # fmt: skip
        assert command.stdin
        assert command.stdout
        said = read_until(command.stdout.fileno(), lambda text: "33 101" in text)
        assert "/dev/pts/" in said
        command.stdin.write(b"words\r")
        read_until(command.stdout.fileno(), lambda text: "got words" in text)
        command.resize(44, 55)
        command.stdin.write(b"\r")
        read_until(command.stdout.fileno(), lambda text: "44 55" in text)
        command.stdin.write(b"more\r")  # the shell ignores a Ctrl-C that comes while its trap's stty runs
        read_until(command.stdout.fileno(), lambda text: "got more" in text)
        command.stdin.write(b"\x03")
        assert command.wait(10) == -signal.SIGINT


def test_what_a_terminal_said_last_is_not_lost(host_root: Lab) -> None:
    with host_root.guest.popen(["seq", "50000"], stdout=subprocess.PIPE, terminal=(24, 80)) as command:
        out, _ = command.communicate(timeout=30)
    assert out.split() == [str(number).encode() for number in range(1, 50001)]


@pytest.mark.wall_clock
def test_a_time_limit(host_root: Lab) -> None:
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        host_root.guest.run(["sh", "-c", HANGS_UP], timeout_s=0.5)
    assert time.monotonic() - began < 5
    assert told(host_root) == "hung up\n"


def test_what_cannot_be_asked_for(host_root: Lab) -> None:
    with pytest.raises(UsageError, match="a command's words come to"):
        host_root.guest.run(["echo", "x" * 300000])
    with pytest.raises(UsageError, match="no NUL"):
        host_root.guest.run(["echo", "\0"])
    with pytest.raises(UsageError, match="no command"):
        host_root.guest.run([])
    assert len(host_root.guest.run(["echo", "x" * 100000]).stdout) == 100001


def test_a_guest_that_goes_away(every_image: Image) -> None:
    before = remains()
    with Lab(image=every_image, root="host") as lab:
        command = lab.guest.popen(["sleep", "1000"], stdout=subprocess.PIPE)
        lab.guest.mconsole.halt()
        assert command.stdout
        assert command.stdout.read() == b""
        with pytest.raises(GuestLost):
            command.wait(10)
        with pytest.raises(GuestLost):
            lab.guest.run(["true"])
        command.close()
    assert eventually_nothing(before) == []


def test_no_program_kills_what_serves_commands(host_root: Lab) -> None:
    with host_root.guest.popen(["sleep", "1000"]) as command:
        killer = "kill -9 $(cut -d' ' -f4 /proc/$1/stat); kill $1"
        host_root.guest.run(["sh", "-c", killer, "sh", str(command.pid)], check=True)
        assert command.wait(10) == -signal.SIGTERM
    assert host_root.guest.run(["true"]).returncode == 0


def test_a_command_is_a_process_of_its_own(host_root: Lab) -> None:
    """Nothing that one does to itself is seen by the next: they are begun by one process."""
    changes = "cd /etc; umask 077; ulimit -n 10; trap '' TERM; exec 3</dev/null; export A=1; "
    shows = "pwd; umask; ulimit -n; ls /proc/self/fd; echo $A; grep Sig[BI] /proc/self/status"
    before = host_root.guest.run(["sh", "-c", shows]).stdout
    assert host_root.guest.run(["sh", "-c", changes + shows]).stdout != before
    assert host_root.guest.run(["sh", "-c", shows]).stdout == before


def test_a_file_without_an_end_holds_up_nobody(host_root: Lab) -> None:
    reading = host_root.guest.popen(["sleep", "0.5"])
    assert len(host_root.guest.read("/dev/zero", most_bytes=50_000_000)) == 50_000_000
    assert reading.wait(10) == 0
    assert host_root.guest.run(["true"]).returncode == 0


def test_a_client_that_is_killed(image: Image) -> None:
    before = remains()
    with Lab(f"killed-{os.getpid()}", image=image, root="host") as lab:
        lab.keep()
    with Lab.join(lab.name) as other:
        client = process.start([sys.executable, "-c", LAST_CLIENT, lab.name, HANGS_UP],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert client.stdout
        assert client.stdout.readline() == b"runs\n"
        with other.guest.popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as mine:
            kill(client.pid)
            process.end(client)
            assert told(other) == "hung up\n"
            assert mine.communicate(b"another terminal's goes on", timeout=10)[0] == b"another terminal's goes on"
        other.end()
    assert eventually_nothing(before) == []


def test_one_that_stays(image: Image) -> None:
    with Lab(f"stays-{os.getpid()}", image=image, root="host") as lab:
        lab.guest.popen(["sh", "-c", "sleep 0.3; echo stayed >/tmp/told; sleep 1000"], stays=True).close()
        lab.keep()
    with Lab.join(lab.name) as other:
        assert told(other) == "stayed\n"
        other.end()


def test_copies_keep_modes_and_times(every_root: Lab, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep").mkdir(parents=True)
    (tree / "deep/every byte").write_bytes(EVERY_BYTE)
    (tree / "deep/every byte").chmod(0o4711)
    (tree / "deep").chmod(0o775)
    (tree / "link").symlink_to("deep/every byte")
    os.utime(tree / "deep/every byte", (1e9, 1e9))
    every_root.guest.copy_in(tree, "/tmp/copied")
    shown = every_root.guest.run(["stat", "-c", "%a %u %Y", "deep/every byte", "deep"], cwd="/tmp/copied").stdout
    assert [line.split()[:2] for line in shown.splitlines()] == [["4711", "0"], ["775", "0"]]
    assert " 1000000000" in shown
    every_root.guest.copy_out("/tmp/copied", tmp_path / "back")
    back = tmp_path / "back/deep/every byte"
    assert back.read_bytes() == EVERY_BYTE
    assert (back.stat().st_mode & 0o7777, back.stat().st_mtime) == (0o711, 1e9)  # no set-user-ID comes out of a guest
    assert (tmp_path / "back/deep").stat().st_mode & 0o777 == 0o775
    assert (tmp_path / "back/link").readlink() == Path("deep/every byte")
    every_root.guest.copy_in(tree / "link", "/tmp/")
    every_root.guest.copy_out("/tmp/copied/deep/every byte", tmp_path)
    assert (tmp_path / "every byte").read_bytes() == EVERY_BYTE
    every_root.guest.run(["rm", "-r", "/tmp/copied", "/tmp/link"], check=True)


def test_copies_that_cannot_be(host_root: Lab, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        host_root.guest.copy_in(tmp_path / "nonesuch", "/tmp")
    with pytest.raises(GuestCommandFailed, match=r"cannot copy .* in the guest"):
        host_root.guest.copy_in(Path(__file__), "/no/such/directory/")
    with pytest.raises(GuestCommandFailed, match="cannot copy /nonesuch out of the guest"):
        host_root.guest.copy_out("/nonesuch", tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_links_come_along_and_devices_do_not(host_root: Lab, tmp_path: Path) -> None:
    script = "mkdir /tmp/linked; cd /tmp/linked; echo x >file; chmod 4711 file; ln file same; ln -s file short"
    host_root.guest.run(["sh", "-c", script], check=True)
    host_root.guest.copy_out("/tmp/linked", tmp_path)
    file = tmp_path / "linked/file"
    assert file.samefile(tmp_path / "linked/same")
    assert (tmp_path / "linked/short").read_text() == "x\n"
    assert file.stat().st_mode & 0o7777 == 0o711
    host_root.guest.run(["sh", "-c", "cd /tmp/linked; mknod device c 1 3; ln -s /etc/passwd out"], check=True)
    with pytest.raises(GuestCommandFailed, match="but for 2 of its files") as caught:
        host_root.guest.copy_out("/tmp/linked", tmp_path / "again")
    assert "linked/device: a device or a FIFO" in caught.value.found
    assert "linked/out: a link to a place outside" in caught.value.found
    assert (tmp_path / "again/file").read_text() == "x\n"


def test_a_tar_that_sends_anything(image: Image, tmp_path: Path) -> None:
    with Lab(image=image, root="host") as lab:
        lab.agent.wait_ready()
        script = (
            "rm /usr/bin/tar; printf '#!/bin/sh\nhead -c 100000 /usr/bin/env\n' >/usr/bin/tar; chmod +x /usr/bin/tar"
        )
        lab.guest.run(["sh", "-c", script], check=True)
        with pytest.raises(GuestCommandFailed, match="cannot copy /tmp/x out of the guest"):
            lab.guest.copy_out("/tmp/x", tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
