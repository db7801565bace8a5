"""The management console: every command on a real kernel, and a kernel that does not answer."""

import json
import os
import signal
import time
from collections.abc import Iterator

import pytest

from skblab.errors import GuestLost, MconsoleRefused, Timeout, UsageError
from skblab.image.image import Image
from skblab.lab import Lab
from support import skblab
from test_completion import completions


def test_what_it_tells(every_lab: Lab) -> None:
    console = every_lab.guest.mconsole
    assert every_lab.image.release in console.version()
    assert "sysrq <letter>" in console.help()
    assert console.proc("/proc/meminfo").startswith("MemTotal:")
    assert "Call Trace:" in console.stack(1)
    assert console.config("con0") == "null"


def test_a_long_answer_comes_whole(every_lab: Lab) -> None:
    printed = every_lab.guest.mconsole.sysrq("m")  # a datagram a line
    assert "Mem-Info:" in printed
    assert "pages RAM" in printed


def test_it_writes_to_the_log(every_lab: Lab) -> None:
    every_lab.guest.mconsole.log("here it begins")
    every_lab.guest.mconsole.log("and here it ends")
    assert "here it begins\n" in every_lab.console.text()


def test_devices_come_and_go(every_lab: Lab) -> None:
    console = every_lab.guest.mconsole
    console.config("con4", "null")
    assert console.config("con4") == "null"
    with pytest.raises(MconsoleRefused, match="failed to parse channel pair"):
        console.config("con5", "bogus")


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("frobnicate", "Unknown command"),
        ("proc nosuch", "Failed to open file"),
        ("stack 99999", "Couldn't find that pid"),
        ("remove vec0", "Device is currently open"),
        ("config nosuch", "Bad configuration option"),
        ("go", "Not stopped"),
    ],
)
def test_a_refusal_has_the_kernels_words(shared_lab: Lab, command: str, words: str) -> None:
    with pytest.raises(MconsoleRefused, match=words) as caught:
        shared_lab.guest.mconsole.command(command)
    assert repr(command) in caught.value.what


def test_what_is_refused_before_it_is_sent(shared_lab: Lab) -> None:
    console = shared_lab.guest.mconsole
    with pytest.raises(UsageError, match="does not reboot"):
        console.reboot()
    with pytest.raises(UsageError, match="panics"):
        console.sysrq("t")
    with pytest.raises(UsageError, match="511 bytes at most"):
        console.log("x" * 512)
    assert console.version()


def test_stop_and_go(lab: Lab) -> None:
    lab.guest.mconsole.stop()
    assert lab.run(["ping", "-c", "1", "-W", "1", "guest"], timeout_s=20).returncode == 1
    lab.guest.mconsole.go()
    assert lab.run(["ping", "-c", "1", "-W", "5", "guest"], timeout_s=20).returncode == 0


@pytest.mark.wall_clock
def test_a_guest_under_gdb_does_not_answer_and_that_is_said(lab: Lab) -> None:
    with lab.debugger():
        started = time.monotonic()
        with pytest.raises(Timeout, match="did not answer 'version'") as caught:
            lab.guest.mconsole.command("version", timeout_s=0.5)
        assert time.monotonic() - started < 3
        assert "stopped by gdb (pid " in caught.value.found
    assert lab.guest.mconsole.version()


@pytest.mark.complains("warning")  # sysrq b frees an interrupt in an interrupt (arch/um/drivers/line.c close_lines())
@pytest.mark.parametrize("end", ["halt", "sysrq o", "sysrq b"])
def test_what_ends_the_kernel_returns_when_it_is_gone(every_image: Image, end: str) -> None:
    with Lab(image=every_image) as lab:
        console = lab.guest.mconsole
        console.halt() if end == "halt" else console.sysrq(end[-1])
        assert not lab.guest.alive
        with pytest.raises(GuestLost, match="was halted, or rebooted"):
            lab.run(["true"])
        with pytest.raises(GuestLost):
            console.version()


def test_a_guest_whose_words_nobody_reads_runs_on(image: Image) -> None:
    """Its init reports every child that ends; UML waits for a reader (mconsole_notify(): a blocking socket)."""
    server = "import os, socket; s = socket.create_server(('', 80)); client, _ = s.accept(); "
    server += "[os.system('(true &)') for _ in range(40)]; client.send(b'done')"
    with Lab(image=image, root="host", commands=[f'exec python3 -c "{server}"']) as lab, lab.socket() as client:
        client.settimeout(20)
        client.connect(("192.168.10.1", 80))
        assert client.recv(4) == b"done"


@pytest.fixture(scope="module")
def up() -> Iterator[str]:
    """The name of a lab that is up."""
    name = f"mconsole-{os.getpid()}"
    assert skblab("up", name).returncode == 0
    yield name
    skblab("down", name)


def test_the_command_line(up: str) -> None:
    assert skblab("mconsole", up, "version").stdout.startswith("Linux ")
    answer = json.loads(skblab("mconsole", up, "proc", "uptime", "--json").stdout)
    assert answer["command"] == "proc uptime"
    assert float(answer["answer"].split()[0]) >= 0
    for words, said in (
        (["frob"], "one of: version, help"),
        (["stack"], "is not complete"),
        (["stack", "one"], "not a pid"),
        (["stack one"], "not a pid"),
        (["version", "1"], "takes nothing"),
        (["reboot"], "does not reboot"),
    ):
        done = skblab("mconsole", up, *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr
    refused = skblab("mconsole", up, "proc", "nosuch")
    assert refused.returncode == 1
    assert "Failed to open file" in refused.stderr


def test_what_a_shell_is_offered(up: str) -> None:
    assert up in completions("skblab mconsole mcon")
    assert {"version", "sysrq", "halt"} <= completions(f"skblab mconsole {up} ")


def test_a_kernel_that_a_signal_has_stopped(lab: Lab) -> None:
    os.kill(lab.guest.pid, signal.SIGSTOP)
    try:
        with pytest.raises(Timeout) as caught:
            lab.guest.mconsole.command("version", timeout_s=0.3)
    finally:
        os.kill(lab.guest.pid, signal.SIGCONT)
    assert "stopped by a signal" in caught.value.found
