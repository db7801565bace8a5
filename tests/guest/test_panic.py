"""A panic is reported at once, with its call trace by file and line."""

import json
import os
import queue
import select
import time
from pathlib import Path

import pytest

from skblab.errors import GuestLost
from skblab.guest.panic import GuestPanicked, call_trace, frames
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import SKBLAB, read_until, skblab, start_skblab

pytestmark = pytest.mark.complains("panic")

READ_NULL = bytes.fromhex("31c0 488b00")  # xor %eax,%eax; mov (%rax),%rax
NOPS = 5


def break_function(lab: Lab, name: str) -> None:
    """Put a real bug into a function of the running kernel: it reads address 0."""
    function = lab.image.functions.lookup(name)
    assert function
    descriptor = os.open(f"/proc/{lab.guest.pid}/mem", os.O_RDWR)
    os.pwrite(descriptor, READ_NULL, function.address + NOPS)
    os.close(descriptor)


def let_be_idle(lab: Lab) -> None:
    """Return when the kernel is idle: one that panics in an interrupt of running code prints no call trace."""
    lab.agent.wait_ready()
    assert lab.run(["ping", "-c", "3", "-i", "0.1", "-W", "5", "guest"], timeout_s=20).returncode == 0


@pytest.mark.wall_clock
def test_a_crash_on_purpose(every_image: Image) -> None:
    with Lab(image=every_image) as lab:
        let_be_idle(lab)
        heard: queue.Queue[GuestPanicked] = queue.Queue()
        lab.on_panic(heard.put)
        asked_s = time.time()
        lab.guest.mconsole.sysrq("c")
        event = heard.get(timeout=10)
        assert event.line == "Kernel panic - not syncing: sysrq triggered crash"
        assert 0 <= event.at_s - asked_s < 1
        assert event.frames[0].function == "sysrq_handle_crash"
        assert event.frames[0].file == "drivers/tty/sysrq.c"
        with pytest.raises(GuestLost) as caught:
            lab.check()
        assert "sysrq_handle_crash()  drivers/tty/sysrq.c:" in caught.value.found


def test_a_bug_in_softirq(every_image: Image) -> None:
    with Lab(image=every_image) as lab:
        let_be_idle(lab)
        heard: queue.Queue[GuestPanicked] = queue.Queue()
        lab.on_panic(heard.put)
        break_function(lab, "icmp_echo")
        lab.popen(["ping", "-c", "1", "-W", "5", "guest"])
        event = heard.get(timeout=10)
        functions = [frame.function for frame in event.frames]
        assert functions[:2] == ["icmp_echo", "icmp_rcv"]
        assert {"ip_protocol_deliver_rcu", "net_rx_action"} <= set(functions)
        assert (event.frames[0].file, event.frames[1].file) == ("net/ipv4/icmp.c", "net/ipv4/icmp.c")
        source = (every_image.source / event.frames[1].file).read_text().splitlines()
        assert "handler" in " ".join(source[event.frames[1].line - 3 : event.frames[1].line + 1])


def test_who_listens_no_more_is_told_nothing(lab: Lab) -> None:
    heard: list[GuestPanicked] = []
    with lab.on_panic(heard.append):
        pass
    lab.guest.mconsole.sysrq("c")
    assert heard == []


def test_everybody_who_shares_a_lab_hears_of_it(image: Image) -> None:
    name = f"panic-{os.getpid()}"
    assert skblab("up", name, "--image", str(image.path)).returncode == 0
    heard: queue.Queue[GuestPanicked] = queue.Queue()
    with Lab.join(name) as one, Lab.join(name) as other:
        one.on_panic(heard.put)
        other.on_panic(heard.put)
        other.guest.mconsole.sysrq("c")
        first, second = heard.get(timeout=10), heard.get(timeout=10)
        assert first == second
    with pytest.raises(GuestLost), Lab.join(name) as late:
        late.check()
    assert skblab("down", name).returncode == 0


@pytest.mark.wall_clock
def test_run_says_so_at_once(image: Image) -> None:
    name = f"panic-run-{os.getpid()}"
    assert skblab("up", name, "--image", str(image.path)).returncode == 0
    running = start_skblab("run", "--lab", name, "-r", "icmp_rcv = trace", "--", "ping", "-i0.2", "guest")
    assert running.stdout
    follower = start_skblab("log", "-f", name)
    assert follower.stdout
    try:
        read_until(running.stdout.fileno(), lambda text: "trace" in text)
        read_until(follower.stdout.fileno(), lambda text: "Run /init" in text)
        started = time.monotonic()
        with Lab.join(name) as lab:
            break_function(lab, "icmp_echo")
        said = read_until(running.stdout.fileno(), lambda text: "net_rx_action()" in text)
        assert running.wait(10) == GuestLost.exit_status
        assert time.monotonic() - started < 10  # of a ping that would go on for ever
        assert "#0  icmp_echo()  net/ipv4/icmp.c:" in said
        followed = read_until(follower.stdout.fileno(), lambda text: "icmp_echo()  net/ipv4/icmp.c:" in text)
        assert "the guest kernel has panicked" in followed
        follower.wait(10)
    finally:
        process.end(running)
        process.end(follower)
        skblab("down", name)


def test_run_says_it_to_programs_too(image: Image) -> None:
    name = f"panic-json-{os.getpid()}"
    assert skblab("up", name, "--image", str(image.path)).returncode == 0
    try:
        with Lab.join(name) as lab:
            let_be_idle(lab)
        crash = [*SKBLAB, "mconsole", name, "sysrq", "c"]
        done = skblab("run", "--lab", name, "--json", "-", "--", *crash)
        (event,) = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"event": "panic"')]
        assert event["line"].endswith("sysrq triggered crash")
        assert event["backtrace"][0]["function"] == "sysrq_handle_crash"
        assert done.returncode == GuestLost.exit_status
    finally:
        skblab("down", name)


def test_a_panic_without_a_way_says_why() -> None:
    event = GuestPanicked("Kernel panic - not syncing: why", 0.0, (), "")
    assert "it was on its signal stack" in str(event)


def test_what_is_no_way_is_left_out() -> None:
    text = """BUG
Kernel panic - not syncing: why
 [<60000010>] ? dump_stack+0x10/0x20
 [<60000110>] ? panic+0x10/0x20
 [<60000200>] ? a_pointer+0x0/0x20
 [<60000310>] ? caller+0x10/0x20
 [<63000310>] ? of_a_module+0x10/0x20 [its_name]
 [<60000410>] ? 0x60000410
"""
    assert call_trace(text, "Kernel panic - not syncing: why") == [("caller", 0x6000030F), ("of_a_module", 0)]


def test_a_kernel_that_gdb_holds_in_its_panic(lab: Lab) -> None:
    """gdb stops it at SIGABRT: it does not end, but the event comes."""
    heard: queue.Queue[GuestPanicked] = queue.Queue()
    lab.on_panic(heard.put)
    with lab.debugger() as debugger:
        debugger.resume()
        break_function(lab, "icmp_echo")
        lab.popen(["ping", "-c", "1", "-W", "5", "guest"])
        assert heard.get(timeout=10).frames[0].function == "icmp_echo"
        assert select.select([debugger], [], [], 10)[0]


def test_the_kernel_of_another_place(tmp_path: Path) -> None:
    assert frames("nothing", "a panic", tmp_path / "vmlinux") == ()
