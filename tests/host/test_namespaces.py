"""A lab's namespaces: what clients find there, how they end, and what a machine may forbid."""

import errno
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import LabNameTaken, MissingPrerequisite, UsageError
from skblab.host import process
from skblab.host.namespace import Namespaces
from skblab.lab import Lab
from support import SKBLAB, skblab, unshared


@pytest.fixture(scope="module")
def namespaces() -> Iterator[Namespaces]:
    with Namespaces(f"test-{os.getpid()}") as namespaces:
        yield namespaces


def inside(namespaces: Namespaces, *argv: str) -> process.Process:
    return process.start(
        namespaces.command(argv),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=[namespaces.pidfd],
        new_session=True,
    )


def said(namespaces: Namespaces, *argv: str) -> str:
    return process.finish(inside(namespaces, *argv), timeout_s=20).stdout


def test_clients_find_the_link_and_both_names(namespaces: Namespaces) -> None:
    assert "192.168.10.254/24" in said(namespaces, "ip", "-br", "address", "show", "dev", namespaces.device)
    assert said(namespaces, "getent", "ahostsv4", "guest").startswith("192.168.10.1 ")
    assert said(namespaces, "getent", "ahostsv6", "host").startswith("fd00:10::254 ")
    assert said(namespaces, "getent", "ahosts", "guest").startswith("192.168.10.1 ")
    assert "localhost" in Path("/etc/hosts").read_text()
    assert "localhost" in said(namespaces, "cat", "/etc/hosts")


def test_clients_see_the_labs_processes_alone(namespaces: Namespaces) -> None:
    pids = {int(name) for name in said(namespaces, "ls", "/proc").split() if name.isdigit()}
    assert 1 in pids
    assert len(pids) <= 4


def test_clients_keep_directory_and_environment(namespaces: Namespaces, tmp_path: Path) -> None:
    running = process.start(
        namespaces.command(["sh", "-c", "pwd; echo $COLOUR"]),
        cwd=tmp_path,
        env=os.environ | {"COLOUR": "blue"},
        stdout=subprocess.PIPE,
        pass_fds=[namespaces.pidfd],
    )
    assert process.finish(running, timeout_s=20).stdout.split() == [str(tmp_path), "blue"]


@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", -signal.SIGTERM), ("kill -KILL $$", -signal.SIGKILL)],
)
def test_a_client_ends_as_its_program_does(namespaces: Namespaces, script: str, status: int) -> None:
    assert process.finish(inside(namespaces, "sh", "-c", script), timeout_s=20).returncode == status


def test_a_program_that_is_not_there(namespaces: Namespaces) -> None:
    done = process.finish(inside(namespaces, "no-such-program"), timeout_s=20)
    assert done.returncode == 127
    assert done.stdout == "no-such-program: No such file or directory\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_client_gets_the_signals_that_are_sent_to_it(namespaces: Namespaces, number: signal.Signals) -> None:
    script = f"trap 'echo got {number.name}; exit 3' {number.name[3:]}; echo ready; while :; do sleep 0.05; done"
    client = inside(namespaces, "sh", "-c", script)
    assert client.stdout is not None
    assert client.stdout.readline() == b"ready\n"
    client.send_signal(number)
    done = process.finish(client, timeout_s=20)
    assert (done.returncode, done.stdout) == (3, f"got {number.name}\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_comes_before_the_client_runs(namespaces: Namespaces, number: signal.Signals) -> None:
    """Its stand-in is a Python that starts for some 20 ms, and would print a traceback."""
    for step in range(8):
        client = inside(namespaces, "sleep", "1000")
        select.select([], [], [], step / 200)
        client.send_signal(number)
        done = process.finish(client, timeout_s=10)
        assert (done.returncode, done.stdout) == (-number, "")


def test_a_client_dies_with_the_one_who_stands_for_it(namespaces: Namespaces) -> None:
    client = inside(namespaces, "sh", "-c", "echo $$; exec sleep 1000")
    assert client.stdout is not None
    client.stdout.readline()
    process.end(client)
    assert "sleep" not in said(namespaces, "sh", "-c", "cat /proc/[0-9]*/cmdline")


def test_a_client_that_is_stopped_and_killed_as_it_stands_has_ended(namespaces: Namespaces) -> None:
    client = inside(namespaces, "sh", "-c", "(sleep 0.3; kill -KILL $$) & echo ready; kill -STOP $$")
    assert process.finish(client, timeout_s=20).returncode == -signal.SIGKILL


def test_a_socket_of_the_host_side_for_this_process(namespaces: Namespaces) -> None:
    with namespaces.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        one.bind(("192.168.10.254", 0))
        assert one.getsockname()[0] == "192.168.10.254"


def test_ip_that_refuses_says_so(namespaces: Namespaces) -> None:
    with pytest.raises(MissingPrerequisite, match="refused a part of the lab") as caught:
        namespaces.ip("link set nonsense up")
    assert "nonsense" in caught.value.found


def test_a_link_of_no_kind() -> None:
    with pytest.raises(UsageError, match="no such kind of link"):
        Namespaces("x", link="carrier-pigeon")


def test_a_second_lab_of_the_same_name_is_told_whose_it_is(namespaces: Namespaces) -> None:
    with pytest.raises(LabNameTaken) as caught, Namespaces(namespaces.name):
        pass
    assert f"pid {os.getpid()}: " in caught.value.found
    done = skblab("ping", "-c", "1", "--name", namespaces.name)
    assert done.returncode == 1
    assert f"a lab named '{namespaces.name}' is running already" in done.stderr
    assert f"kill {os.getpid()}" in done.stderr


def test_names_are_free_again_at_once() -> None:
    for _ in range(5):
        with Namespaces(f"again-{os.getpid()}", link="veth"):
            pass


def test_no_user_namespaces() -> None:
    done = unshared("echo 0 >/proc/sys/user/max_user_namespaces", then=[*SKBLAB, "ping", "-c", "1"])
    assert done.returncode == 3
    assert "this machine does not let you make a user namespace" in done.stderr
    assert "/proc/sys/user/max_user_namespaces is 0" in done.stderr
    assert "sysctl -w user.max_user_namespaces=" in done.stderr
    assert "Traceback" not in done.stderr


NO_TUN = "mount -t tmpfs none /dev/net"


def test_no_tun_device_makes_it_a_veth_pair() -> None:
    done = unshared(NO_TUN, then=[*SKBLAB, "ping", "--holds", "0.2", "--json"])
    assert done.returncode == 0, done.stderr
    assert '"lost": 0' in done.stdout


def test_no_tun_device_where_a_tap_was_asked_for() -> None:
    done = unshared(NO_TUN, then=[*SKBLAB, "ping", "-c", "1", "--link", "tap"])
    assert done.returncode == 3
    assert "cannot make a tap" in done.stderr
    assert "/dev/net/tun: No such file or directory" in done.stderr
    assert "--link veth" in done.stderr


def test_doctor_says_what_is_forbidden() -> None:
    done = unshared(NO_TUN, "echo 0 >/proc/sys/user/max_user_namespaces", then=[*SKBLAB, "doctor"])
    assert done.returncode == 3
    assert "NO  namespaces" in done.stdout
    assert "no  tap" in done.stdout
    assert "sysctl -w user.max_user_namespaces=" in done.stdout


def test_doctor_on_this_machine() -> None:
    done = skblab("doctor")
    assert done.returncode == 0, done.stdout
    assert "ok  namespaces" in done.stdout
    assert sys.stdout.isatty() or "\x1b" not in done.stdout


def test_a_socket_knows_the_names_of_the_lab(shared_lab: Lab) -> None:
    assert shared_lab.guest_address == "192.168.10.1"
    with shared_lab.socket() as client:
        assert client.connect_ex(("guest", 9)) == errno.ECONNREFUSED
    with shared_lab.socket(socket.AF_INET6) as client:
        assert client.connect_ex(("guest", 9)) == errno.ECONNREFUSED
    for family, function, host, guest in (
        (socket.AF_INET, "udp_rcv", "192.168.10.254", "192.168.10.1"),
        (socket.AF_INET6, "udpv6_rcv", "fd00:10::254", "fd00:10::1"),
    ):
        with shared_lab.socket(family, socket.SOCK_DGRAM) as client, shared_lab.probe(function, "udp port 99") as probe:
            client.bind(("host", 0))
            assert client.getsockname()[0] == host
            client.sendto(b"one", ("guest", 99))
            client.sendto(b"two", 0, (guest, 99))
            assert [hit.packet.destination for hit in probe.take(2)] == [guest] * 2
        assert probe.counts.traced == 2
