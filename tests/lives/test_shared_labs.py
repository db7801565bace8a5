"""Labs that outlive the command that started them: several terminals, one agent, and what each leaves behind."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import DebuggerError, GuestLost, LabBusy, LabNameTaken, NoSuchLab, UsageError
from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from support import SKBLAB, Person, eventually_nothing, read_until, remains, skblab, start_skblab

HOLDER = """
import sys
from skblab.lab import Lab
with Lab.join(sys.argv[1]) as lab, lab.hold("icmp_rcv") as held, lab.rule("ip_output = trace"):
    print("armed", flush=True)
    held.take(5)
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def name(image: Image) -> Iterator[str]:
    """The name of a lab that is up; nothing of it stays behind."""
    before = remains()
    with Lab(f"shared-{os.getpid()}", image=image) as lab:
        lab.keep()
    yield lab.name
    with Lab.join(lab.name) as joined:
        joined.end()
    assert eventually_nothing(before) == []


@pytest.mark.parametrize(
    "describing",
    [
        ["--series", "6.12"], ["--variant", "kasan"], ["--image", "none"], ["--name", "other"], ["--link", "veth"],
        ["--memory", "128"], ["--time", "virtual"], ["--clock", "frozen"], ["--seed", "1"], ["--node", "a"],
        ["--root", "host"], ["--userspace", "ptrace"], ["--disk", "d"], ["--module", "m.ko"], ["--consoles", "2"],
    ],
)  # fmt: skip
def test_a_lab_that_is_up_stays_as_it_is(name: str, describing: list[str]) -> None:
    """Else a run with ``--variant kasan`` would say that this kernel has nothing to complain of."""
    done = skblab("run", "--lab", name, *describing, "--", "true")
    assert (done.returncode, done.stdout) == (2, "")
    assert f"lab {name} is up, and stays as it is: {describing[0]} describes a new one" in done.stderr


def test_a_shell_on_no_lab_is_one_error() -> None:
    done = skblab("shell", "nowhere")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "skblab: no lab named 'nowhere' to join")


def test_a_traces_ring_is_its_labs(name: str) -> None:
    done = skblab("trace", "--lab", name, "--ring", "128", "--", "true")
    assert done.returncode == 2
    assert "--ring describes a new one" in done.stderr


def test_from_up_to_down() -> None:
    before = remains()
    up = skblab("up", "terminals", "--json")
    assert up.returncode == 0, up.stderr
    about = json.loads(up.stdout)
    assert about["name"] == "terminals"
    listed = [json.loads(line) for line in skblab("ls", "--json").stdout.splitlines()]
    assert [one["kept"] for one in listed if one["name"] == "terminals"] == [True]
    done = skblab("exec", "terminals", "--", "ping", "-c", "2", "-i", "0.2", "guest")
    assert (done.returncode, len(parse_ping(done.stdout))) == (0, 2)
    assert skblab("exec", "terminals", "--", "sh", "-c", "exit 7").returncode == 7
    run = skblab("run", "--lab", "terminals", "-r", "icmp_rcv = drop @2", "--",
                 "ping", "-c", "3", "-i", "0.05", "-W", "1", "guest")  # fmt: skip
    assert [reply.icmp_seq for reply in parse_ping(run.stdout)] == [1, 3]
    assert "Run /init as init process" in skblab("log", "terminals").stdout
    assert "terminals is down" in skblab("down", "terminals").stdout
    assert eventually_nothing(before) == []
    assert "terminals" not in skblab("ls").stdout


def test_a_filter_names_the_machines_of_a_lab_that_is_up(image: Image) -> None:
    with Lab(f"named-{os.getpid()}", image=image, time="virtual", nodes=["a"]) as lab:
        lab.keep()
    try:
        rule = "icmp_rcv = trace @1 if src a and dst host"
        done = skblab("run", "--lab", lab.name, "-r", rule, "--", "ping", "-c1", "a")
        assert done.returncode == 0, done.stderr
        refused = skblab("trace", "--lab", lab.name, "host localhost", "--", "true")
        assert (refused.returncode, "no machine of this lab" in refused.stderr) == (2, True)
    finally:
        assert skblab("down", lab.name).returncode == 0


def test_down_ends_all_or_those_that_it_is_told(name: str) -> None:
    """Else a mistyped --all would end every lab, and a mistyped name beside it would be no error."""
    done = skblab("down", "--all", "nosuch")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--all ends every lab; it takes no name: nosuch" in done.stderr
    with Lab.join(name) as lab:
        assert lab.run(["ping", "-c", "1", "guest"], timeout_s=10).returncode == 0


def test_down_says_that_nothing_is_up(tmp_path: Path) -> None:
    done = skblab("down", "--all", XDG_RUNTIME_DIR=str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "no lab is up\n")


def test_it_serves_in_the_guest() -> None:
    up = skblab("up", "serving", "--root", "host", "-g", "python3 -m http.server 80")
    try:
        assert up.returncode == 0, up.stderr
        done = skblab("exec", "serving", "--", "curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "http://guest/")
        assert done.stdout == "200"
        refused = skblab("run", "--lab", "serving", "-g", "iperf3 -s", "--", "true")
        assert "give -g to skblab up" in refused.stderr
    finally:
        assert skblab("down", "--all").returncode == 0


@pytest.mark.wall_clock
def test_a_controller_that_is_killed_leaves_everything_free(name: str) -> None:
    with Lab.join(name) as lab:
        holder = process.start([sys.executable, "-c", HOLDER, name], stdin=subprocess.PIPE,
                               stdout=subprocess.PIPE, new_session=True)  # fmt: skip
        assert holder.stdout
        read_until(holder.stdout.fileno(), lambda text: "armed" in text)
        ping = lab.popen(["ping", "-n", "-c", "5", "-i", "0.01", "-W", "5", "guest"], stdout=subprocess.PIPE)
        read_until(holder.stdout.fileno(), lambda text: "held" in text)
        killed_s = time.monotonic()
        holder.kill()
        said = process.finish(ping, timeout_s=10).stdout
        assert time.monotonic() - killed_s < 1
        assert len(parse_ping(said)) == 5
        process.end(holder)
        assert (lab.agent.channel.held, lab.agent.channel.probes) == (0, 0)
        assert "the host is gone; everything is released" in lab.console.text()
        assert lab.run(["ping", "-c", "1", "guest"], timeout_s=10).returncode == 0


def test_one_controller_after_another(name: str) -> None:
    for _ in range(20):
        with Lab.join(name) as lab, lab.hold("icmp_rcv") as held:
            ping = lab.popen(["ping", "-n", "-c", "1", "guest"], stdout=subprocess.PIPE)
            (packet,) = held.take(1)
            packet.release()
            assert parse_ping(process.finish(ping, timeout_s=10).stdout)
            lab.rule("ip_rcv = trace")  # left behind on purpose
    with Lab.join(name) as lab:
        lab.agent.wait_ready()
        assert lab.agent.channel.probes == 0


def test_who_has_booted_a_lab_closes_it() -> None:
    with Lab() as lab, pytest.raises(UsageError, match=f"lab {lab.name} was not joined"):
        lab.end()


def test_the_second_controller_is_told_who_has_it(name: str) -> None:
    with Lab.join(name) as first, Lab.join(name) as second, first.probe("icmp_rcv"):
        with pytest.raises(LabBusy) as caught:
            second.hold("icmp_rcv")
        assert f"pid {os.getpid()}: " in caught.value.found
        assert second.run(["ping", "-c", "1", "guest"], timeout_s=10).returncode == 0
    with Lab.join(name) as third, third.hold("icmp_rcv"):
        pass


def test_one_gdb_at_a_time(name: str) -> None:
    with Lab.join(name) as first, Lab.join(name) as second, first.debugger():
        with pytest.raises(DebuggerError, match="may not attach") as caught, second.debugger():
            pass
        assert "traces it already" in caught.value.found
    with Lab.join(name) as lab:
        assert lab.run(["ping", "-c", "1", "guest"], timeout_s=10).returncode == 0


def test_a_guest_that_dies_can_still_be_read(name: str) -> None:
    with Lab.join(name) as lab, lab.hold("icmp_rcv"):
        os.kill(lab.guest.pid, signal.SIGKILL)
        assert select.select([lab.guest.pidfd], [], [], 10)[0]
        with pytest.raises(GuestLost, match="SIGKILL"):
            lab.run(["ping", "-c", "1", "guest"], timeout_s=10)
    assert "Run /init" in skblab("log", name).stdout
    assert "the guest kernel is gone" in skblab("exec", name, "--", "true").stderr


def test_following_a_log_ends_with_the_lab(image: Image) -> None:
    with Lab(f"followed-{os.getpid()}", image=image) as lab:
        lab.keep()
    follower = start_skblab("log", "-f", lab.name)
    assert follower.stdout
    read_until(follower.stdout.fileno(), lambda text: "Run /init" in text)
    assert skblab("down", lab.name).returncode == 0
    assert follower.wait(10) == 0
    process.end(follower)


def test_names(name: str) -> None:
    with pytest.raises(LabNameTaken, match="is up already"), Lab(name):
        pass
    with pytest.raises(NoSuchLab, match="no lab named 'nobody'") as caught, Lab.join("nobody"):
        pass
    assert name in caught.value.found
    with pytest.raises(UsageError), Lab.join("../x"):
        pass


def test_gdb_in_one_terminal_and_ping_in_another(name: str) -> None:
    commands = b"break icmp_rcv\ncontinue\nskb skb\nbt 5\ndetach\nquit\n"
    with Lab.join(name) as lab:
        gdb = process.start([*SKBLAB, "gdb", name], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT)  # fmt: skip
        assert gdb.stdout
        read_until(gdb.stdout.fileno(), lambda text: "(gdb)" in text)
        ping = lab.popen(["ping", "-n", "-c", "1", "-W", "20", "guest"], stdout=subprocess.PIPE)
        said = gdb.communicate(commands, timeout=30)[0].decode()
        assert "192.168.10.254 > 192.168.10.1: ICMP echo request" in said
        assert "#0  icmp_rcv (skb=0x" in said
        assert len(parse_ping(process.finish(ping, timeout_s=30).stdout)) == 1


def test_a_shell_in_the_guest(image: Image) -> None:
    with Lab(f"console-{os.getpid()}", image=image, root="host") as lab:
        lab.keep()
    try:
        person = Person("console", lab.name)
        person.reads("guest# ")
        person.types(b"uname -r; tty; ping -c1 host | grep received\r")
        said = person.reads("1 received")
        assert f"{image.release}\n/dev/tty1" in said
        person.types(b"\x1d")
        assert person.program.wait(10) == 0
        person = Person("console", lab.name)  # the same shell, still there
        person.reads("guest# ")
        os.kill(lab_pid(lab.name), signal.SIGKILL)
        assert person.program.wait(10) == GuestLost.exit_status
    finally:
        assert skblab("down", lab.name).returncode == 0


def lab_pid(name: str) -> int:
    with Lab.join(name) as lab:
        return lab.guest.pid


def test_without_programs_there_is_no_shell(name: str) -> None:
    done = skblab("console", name)
    assert done.returncode == 2
    assert "skblab up NAME --root host" in done.stderr
