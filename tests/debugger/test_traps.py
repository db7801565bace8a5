"""What can go wrong around a stopped kernel, and what is left of the guest."""

import os
import select
import signal
import subprocess
from pathlib import Path

import pytest

from skblab.debugger.session import Debugger
from skblab.errors import DebuggerError, GuestLost, Timeout
from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.lab import Lab
from support import SKBLAB, skblab


def ping(lab: Lab, count: int = 1) -> process.Client:
    argv = ["ping", "-n", "-c", str(count), "-i", "0.1", "-W", "10", "192.168.10.1"]
    return lab.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def replies(client: process.Client) -> int:
    return len(parse_ping(process.finish(client, timeout_s=30).stdout))


def stopped_at_icmp_rcv(lab: Lab, debugger: Debugger) -> process.Client:
    debugger.set_stop("icmp_rcv")
    debugger.resume()
    client = ping(lab)
    debugger.wait_stop(20)
    return client


def kill_gdb(debugger: Debugger) -> None:
    """Kill gdb itself; its stand-in on the host ends with it."""
    children = Path(f"/proc/{debugger.process.pid}/task/{debugger.process.pid}/children")
    os.kill(int(children.read_text()), signal.SIGKILL)


def test_gdb_killed_while_the_kernel_is_stopped(lab: Lab) -> None:
    with lab.debugger() as debugger:
        client = stopped_at_icmp_rcv(lab, debugger)
        kill_gdb(debugger)
        with pytest.raises(DebuggerError, match=r"gdb is gone \(status -9\); the guest runs on"):
            debugger.evaluate("1")
        assert replies(client) == 1
    assert replies(ping(lab, 3)) == 3


def test_gdb_killed_while_the_kernel_runs_with_a_breakpoint_in_it(lab: Lab) -> None:
    with lab.debugger() as debugger:
        debugger.set_stop("icmp_rcv")
        debugger.resume()
        kill_gdb(debugger)
        with pytest.raises(DebuggerError, match="gdb is gone"):
            debugger.wait_stop(10)
        assert replies(ping(lab, 3)) == 3


def test_gdb_killed_unseen(lab: Lab) -> None:
    with lab.debugger() as debugger:
        debugger.set_stop("icmp_rcv")
        debugger.resume()
        kill_gdb(debugger)
        debugger.process.wait()
    assert replies(ping(lab, 3)) == 3


def test_the_guest_killed_while_it_is_stopped(lab: Lab) -> None:
    with lab.debugger() as debugger:
        client = stopped_at_icmp_rcv(lab, debugger)
        os.kill(lab.guest.pid, signal.SIGKILL)
        debugger.resume()
        with pytest.raises(GuestLost, match="ended while gdb held it"):
            debugger.wait_stop(10)
        client.send_signal(signal.SIGINT)
        assert replies(client) == 0


def test_the_guest_killed_while_it_runs(lab: Lab) -> None:
    with lab.debugger() as debugger:
        debugger.resume()
        os.kill(lab.guest.pid, signal.SIGKILL)
        with pytest.raises(GuestLost, match="signal SIGKILL"):
            debugger.wait_stop(10)


def test_ping_killed_while_its_packet_is_stopped(lab: Lab) -> None:
    with lab.debugger() as debugger:
        client = stopped_at_icmp_rcv(lab, debugger)
        client.kill()
        client.communicate()
        debugger.resume()
        with pytest.raises(Timeout):
            debugger.wait_stop(0.2)
    assert replies(ping(lab, 3)) == 3


def test_a_second_gdb_is_told_of_the_first(lab: Lab) -> None:
    with lab.debugger() as first, pytest.raises(DebuggerError, match="may not attach") as caught, lab.debugger():
        pass
    assert "gdb (pid" in caught.value.found
    assert "traces it already" in caught.value.found
    assert first.process.poll() == 0
    assert replies(ping(lab)) == 1


# A seccomp filter (seccomp(2)) that refuses only ptrace(2), number 101, with "Operation not permitted".
FORBID_PTRACE = """
import ctypes, os, struct, sys
code = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0), (0x15, 0, 1, 101), (0x06, 0, 0, 0x00050001), (0x06, 0, 0, 0x7FFF0000)])
buffer = ctypes.create_string_buffer(code)
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(buffer)))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program)) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_ptrace_forbidden_by_a_seccomp_filter() -> None:
    done = process.run([SKBLAB[0], "-c", FORBID_PTRACE, *SKBLAB, "ping", "-c", "1"], timeout_s=60)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "ptrace(2) is forbidden here" in done.stderr
    assert "seccomp" in done.stderr
    assert "Traceback" not in done.stderr


def test_no_such_function_names_the_near_ones() -> None:
    done = skblab("ping", "--at", "icmp_rvc", "--holds", "0.1")
    assert done.returncode == 2
    assert 'no function "icmp_rvc"' in done.stderr
    assert "icmp_rcv" in done.stderr


def test_an_inlined_function_says_where_it_went() -> None:
    done = skblab("ping", "--at", "dst_input", "--holds", "0.1")
    assert done.returncode == 2
    assert "dst_input() was inlined in Linux" in done.stderr
    assert "ip_rcv() (net/ipv4/ip_input.c:" in done.stderr
    assert "hint: stop at " in done.stderr


def test_of_a_function_that_was_inlined_one_is_named_that_packets_pass() -> None:
    """Packets of the link come in lists: nothing passes netif_receive_skb(), into which this one was inlined."""
    ping = ("--", "ping", "-n", "-c1", "guest")
    done = skblab("run", "-r", "__netif_receive_skb = trace", *ping)
    assert done.returncode == 2
    named = "napi_gro_receive"
    assert f"stop at {named}: packets of the link do not pass netif_receive_skb\n" in done.stderr
    done = skblab("run", "-q", "-r", f"{named} = trace if icmp", "-r", "netif_receive_skb = trace", *ping)
    assert f"{named} = trace if icmp: arrived 1" in done.stderr
    assert "netif_receive_skb = trace: arrived 0" in done.stderr


def test_a_function_that_was_inlined_on_the_pings_way_says_so_too() -> None:
    done = skblab("ping", "--at", "ip_rcv_finish", "--holds", "0.1")
    assert done.returncode == 1
    assert "ip_rcv_finish() was also inlined into ip_rcv() (net/ipv4/ip_input.c:" in done.stderr


def test_a_function_that_no_ping_comes_by() -> None:
    done = skblab("ping", "--at", "tcp_v4_rcv", "--holds", "0.1")
    assert done.returncode == 1
    assert "no ping has entered tcp_v4_rcv()" in done.stderr
    assert "choose a function on a ping's way" in done.stderr


def test_waiting_for_the_guest_ends_with_the_guest(lab: Lab) -> None:
    with lab.debugger() as debugger:
        debugger.resume()
        os.kill(lab.guest.pid, signal.SIGKILL)
        assert select.select([debugger], [], [], 10)[0]
        with pytest.raises(GuestLost):
            debugger.wait_stop(10)
