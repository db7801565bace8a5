"""Measure boots, labs, commands and gdb."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from numbers_table import Number, stopwatch, summary

from skblab.errors import Timeout
from skblab.guest import initramfs
from skblab.guest.boot import Boot, Guest
from skblab.guest.console import Console
from skblab.host import process
from skblab.host.links import Addresses
from skblab.host.namespace import Namespaces
from skblab.image.image import Image
from skblab.lab import Lab
from skblab.packet import echo_request

RUNS = 20
MANY, STARTED_AT_ONCE = 200, 8
PROBE_EVERY_S = 0.0005
FIRST_REPLY_WITHIN_S = 10.0
STOPS = 50
IDENTITY = 0x5B1A


class FirstReply:
    """A client that sends echo requests until the first reply."""

    def __init__(self, namespaces: Namespaces) -> None:
        self._socket = namespaces.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._address = (Addresses().guest[0].split("/")[0], 0)
        self.at_s = 0.0
        self._thread = threading.Thread(target=self._ask)
        self._thread.start()

    def _ask(self) -> None:
        self._socket.settimeout(PROBE_EVERY_S)
        give_up_s = time.perf_counter() + FIRST_REPLY_WITHIN_S
        sequence = 0
        while time.perf_counter() < give_up_s:
            sequence += 1
            try:
                self._socket.sendto(echo_request(IDENTITY, sequence), self._address)
                packet = self._socket.recv(2048)
            except TimeoutError:
                continue
            if packet[20] == 0:
                self.at_s = time.perf_counter()
                return

    def wait_s(self) -> float:
        """Return the time of the reply."""
        self._thread.join()
        self._socket.close()
        if not self.at_s:
            raise Timeout(f"no echo reply within {FIRST_REPLY_WITHIN_S:g} s")
        return self.at_s


def first_echo_reply(image: Image, link: str) -> list[float]:
    """Return the times from spawning the kernel to its first echo reply, in ms."""
    times = []
    for _ in range(RUNS):
        with Namespaces(f"bench-{os.getpid()}", link=link) as namespaces:
            console = Console()
            client = FirstReply(namespaces)
            guest = Guest.boot(Boot(image.kernel, initramfs.ensure(image.path)), namespaces, console)
            times.append((client.wait_s() - guest.spawned_s) * 1e3)
            guest.close()
            console.close()
    return times


def repeat(work: Callable[[], None], runs: int) -> list[float]:
    """Return how long each run of some work took, in ms."""
    times: list[float] = []
    for _ in range(runs):
        with stopwatch(times):
            work()
    return times


def lab_and_back(image: Image) -> list[float]:
    """Return the times of starting a lab and ending it, in ms."""

    def once() -> None:
        with Lab(image=image):
            pass

    return repeat(once, RUNS)


def many_labs(image: Image) -> list[float]:
    """Return the times until many labs of one process are ready, in s."""
    labs = [Lab(f"bench-{os.getpid()}-{number}", image=image) for number in range(MANY)]
    started = time.perf_counter()
    with ExitStack() as stack, ThreadPoolExecutor(STARTED_AT_ONCE) as pool:
        list(pool.map(stack.enter_context, labs))
        return [time.perf_counter() - started]


def command(*words: str) -> list[float]:
    """Return the times of a whole command, from start to exit, in ms."""

    def once() -> None:
        done = process.run([Path(sys.executable).with_name("skblab"), *words])
        assert done.returncode == 0, done.stderr

    return repeat(once, RUNS)


def debugger(image: Image) -> Iterator[Number]:
    """Measure gdb: attach, stop, detach."""
    attach: list[float] = []
    detach: list[float] = []
    stop: list[float] = []
    with Lab(image=image) as lab, lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as client:
        for _ in range(5):
            session = lab.debugger()
            with stopwatch(attach):
                session.__enter__()
            with stopwatch(detach):
                session.close()
        with lab.debugger() as session:
            session.set_stop("icmp_rcv")
            for sequence in range(STOPS):
                session.resume()
                with stopwatch(stop):
                    client.sendto(echo_request(IDENTITY, sequence), (Addresses().guest[0].split("/")[0], 0))
                    session.wait_stop(10)
    yield summary("gdb: attach", attach, "ms")
    yield summary("gdb: detach", detach, "ms")
    yield summary("gdb: packet sent to stop reported", stop, "ms")


def measure(image: Image) -> Iterator[Number]:
    """Measure everything."""
    with Lab(image=image) as lab:
        link = lab.namespaces.link
    yield summary(f"spawn to first echo reply ({link})", first_echo_reply(image, link), "ms", 30)
    if link == "tap":
        yield summary("spawn to first echo reply (veth)", first_echo_reply(image, "veth"), "ms")
    yield summary("a lab, started and ended", lab_and_back(image), "ms")
    yield summary(f"{MANY} labs of one process, ready", many_labs(image), "s", 10)
    yield summary("skblab ping -c 1, whole process", command("ping", "-c", "1"), "ms", 600)
    yield from debugger(image)
