"""gdb on the guest's kernel: what it sees, what it can do, and that the guest works afterwards."""

import math
import os
import signal
import socket
import subprocess
import threading

import pytest

from skblab.errors import DebuggerError, Timeout, UnknownFunction, UsageError
from skblab.host import process
from skblab.host.clients import parse_ping
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import Packet


def ping(lab: Lab, *options: str) -> process.Client:
    return lab.popen(
        ["ping", "-n", "-W", "10", *(options or ("-c", "1")), "guest"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def assert_well(lab: Lab) -> None:
    for _ in range(3):  # of several, ping waits for the last one's reply for twice the longest RTT alone
        done = lab.run(["ping", "-n", "-c", "1", "-W", "5", "guest"], timeout_s=20)
        assert len(parse_ping(done.stdout)) == 1, done.stdout


def finish(client: process.Client) -> str:
    return process.finish(client, timeout_s=30).stdout


def in_order(names: list[str], wanted: list[str]) -> bool:
    """Whether the wanted names come in this order among the names."""
    rest = iter(names)
    return all(one in rest for one in wanted)


WAY_TO = {
    "icmp_rcv": ["icmp_rcv", "ip_protocol_deliver_rcu", "ip_local_deliver", "ip_rcv", "__napi_poll", "net_rx_action"],
    "ip_rcv": ["ip_rcv", "__napi_poll", "net_rx_action"],
    "icmp_echo": ["icmp_echo", "icmp_rcv", "ip_local_deliver", "ip_rcv", "net_rx_action"],
}


@pytest.mark.parametrize("function", WAY_TO)
def test_the_backtrace_reaches_from_the_stop_to_the_idle_loop(every_lab: Lab, function: str) -> None:
    with every_lab.debugger() as debugger:
        debugger.set_stop(function)
        debugger.resume()
        for _ in range(5):  # until a request interrupts the idle loop, and no thread that has work
            client = ping(every_lab)
            stopped = debugger.wait_stop(20)
            names = [frame.function for frame in stopped.frames]
            assert in_order(names, WAY_TO[function]), "\n".join(names)
            if "do_idle" in names:
                break
            debugger.resume()
            finish(client)
        way = [*WAY_TO[function], "do_IRQ", "do_idle", "start_kernel", "new_thread_handler"]
        assert in_order(names, way), "\n".join(names)
        assert names[-1] == "new_thread_handler"
        assert all(frame.file and frame.line for frame in stopped.frames[:10])
        assert stopped.reason == "stop"
        assert stopped.detail == function
        assert stopped.packet is not None
        packet = Packet(bytes.fromhex(stopped.packet.linear), stopped.packet.protocol)
        assert packet.echo is not None
        assert packet.echo[0] == "echo request"
        assert (packet.source, packet.destination) == ("192.168.10.254", "192.168.10.1")
        assert stopped.packet.dev == "vec0"
        debugger.resume()
        assert len(parse_ping(finish(client))) == 1
    assert_well(every_lab)


def test_the_kernel_was_idle_when_gdb_attached(every_lab: Lab) -> None:
    with every_lab.debugger() as debugger:
        names = [frame.function for frame in debugger.attached_at.frames]
        assert in_order(names, ["do_idle", "start_kernel"]), names
    assert_well(every_lab)


def test_the_source_around_the_stop(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        debugger.set_stop("icmp_rcv")
        debugger.resume()
        client = ping(shared_lab)
        frame = debugger.wait_stop(20).frames[0]
        lines = dict(shared_lab.image.source_lines(frame.file, frame.line, around=3))
        assert "icmp_rcv" in " ".join(lines.values())
        assert len(lines) == 7 or frame.line <= 3
        (argument,) = frame.arguments
        assert (argument.name, argument.type) == ("skb", "struct sk_buff *")
        assert int(argument.value.split()[0], 16) > 0
        debugger.resume()
        finish(client)


def test_a_condition_on_the_packet(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        debugger.set_stop("icmp_rcv", condition="skb->len > 500")
        debugger.resume()
        finish(ping(shared_lab, "-c", "3", "-i", "0.01"))
        client = ping(shared_lab, "-c", "1", "-s", "1000")
        stopped = debugger.wait_stop(20)
        assert stopped.packet is not None
        assert stopped.packet.len > 500
        debugger.resume()
        finish(client)
        with pytest.raises(Timeout):
            debugger.wait_stop(0.2)
        for wait in (debugger.wait_stop, lambda given: debugger.interrupt(timeout_s=given)):
            with pytest.raises(UsageError, match="no such time: timeout_s=nan"):
                wait(math.nan)
    assert_well(shared_lab)


def test_step_finish_and_evaluate(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        debugger.set_stop("icmp_rcv")
        debugger.resume()
        client = ping(shared_lab)
        first = debugger.wait_stop(20)
        assert int(debugger.evaluate("skb->len")) == 64
        assert debugger.evaluate("skb->dev->name").startswith('"vec0"')
        debugger.resume("next")
        second = debugger.wait_stop(20)
        assert second.reason == "step"
        assert second.frames[0].function == "icmp_rcv"
        assert second.frames[0].line != first.frames[0].line
        debugger.resume("stepi")
        assert debugger.wait_stop(20).frames[0].pc != second.frames[0].pc
        debugger.resume("finish")
        assert debugger.wait_stop(20).frames[0].function == "ip_protocol_deliver_rcu"
        debugger.resume()
        assert len(parse_ping(finish(client))) == 1
    assert_well(shared_lab)


def test_a_stop_that_was_cleared_stops_nothing(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        number = debugger.set_stop("icmp_rcv")
        debugger.clear_stop(number)
        debugger.resume()
        assert_well(shared_lab)


def test_a_running_kernel_can_be_interrupted(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        debugger.resume()
        stopped = debugger.interrupt()
        assert stopped.reason == "signal"
        assert "do_idle" in [frame.function for frame in stopped.frames]
        debugger.resume()
        assert_well(shared_lab)


def test_leaving_at_a_stop_lets_the_packet_go(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        debugger.set_stop("icmp_rcv")
        debugger.resume()
        client = ping(shared_lab)
        debugger.wait_stop(20)
    assert len(parse_ping(finish(client))) == 1
    assert_well(shared_lab)


def test_many_sessions_one_after_another(shared_lab: Lab) -> None:
    for _ in range(3):
        with shared_lab.debugger() as debugger:
            debugger.set_stop("ip_rcv")
    assert_well(shared_lab)


def test_an_answer_that_nobody_waits_for_any_more_is_no_other_requests(shared_lab: Lab) -> None:
    with shared_lab.debugger() as gdb:
        os.killpg(gdb.process.pid, signal.SIGSTOP)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            gdb.evaluate("40 + 2")
        os.killpg(gdb.process.pid, signal.SIGCONT)
        assert gdb.evaluate("1 + 1") == "2"
    assert_well(shared_lab)


def test_what_gdb_refuses_is_told_in_its_words(shared_lab: Lab) -> None:
    with shared_lab.debugger() as debugger:
        with pytest.raises(DebuggerError, match='No symbol "nonsense" in current context'):
            debugger.evaluate("nonsense")
        with pytest.raises(DebuggerError, match="nonsense"):
            debugger.set_stop("icmp_rcv", condition="nonsense > 1")
        with pytest.raises(UnknownFunction):
            debugger.set_stop("icmp_rvc")
        with pytest.raises(UsageError, match="not running: nothing to wait for"):
            debugger.wait_stop(1)
        debugger.resume()
        with pytest.raises(UsageError, match="the kernel is running"):
            debugger.evaluate("1")
    assert_well(shared_lab)


UDP_SERVER = """
import socket
one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
one.bind(("", 90))
print("ready", flush=True)
while True: one.sendto(*one.recvfrom(100))
"""


def test_a_packet_on_a_sockets_queue_has_no_device(image: Image) -> None:
    """There dev_scratch occupies skb->dev (net/ipv4/udp.c udp_set_dev_scratch())."""
    with (
        Lab(image=image, root="host", memory_mib=128) as lab,
        lab.guest.popen(["python3", "-c", UDP_SERVER], stdout=subprocess.PIPE) as server,
        lab.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
    ):
        assert server.stdout
        server.stdout.readline()
        client.settimeout(10)
        with lab.debugger() as debugger:
            debugger.set_stop("udp_rcv")
            debugger.set_stop("skb_consume_udp")
            debugger.resume()
            client.sendto(b"hello", ("192.168.10.1", 90))
            seen = []
            for _ in range(2):
                stopped = debugger.wait_stop(20)
                assert stopped.packet
                seen.append((stopped.detail, stopped.packet.dev))
                debugger.resume()
            assert client.recv(100) == b"hello"
        server.kill()
    assert seen == [("udp_rcv", "vec0"), ("skb_consume_udp", "")]
