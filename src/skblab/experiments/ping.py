"""The experiment of 2010 as a program: stop the kernel while a ping is inside, and decide when it goes on.

The steps are methods: a person at the keyboard and a list of hold times run the same ones.
"""

import errno
import signal
import socket
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Any, Self

from skblab.debugger.inside import wire
from skblab.debugger.session import Debugger
from skblab.errors import SkblabError, Timeout, UsageError
from skblab.guest.losses import Losses
from skblab.host import process
from skblab.host.clients import PingReply, parse_ping
from skblab.host.gdb import find_gdb
from skblab.host.waiting import wait
from skblab.image.missing import in_words, inlined_into
from skblab.lab import Lab
from skblab.packet import Packet, echo_request

ARRIVAL_TIMEOUT_S = 5.0
SLOW_ARRIVAL_TIMEOUT_S = 30.0  # with another gdb than ours: Debian 12's takes seconds to find its place
LINGER_S = 10.0  # for the last reply, after the last release
FOREVER_S = 86400
ECHO_REQUEST = "icmp[icmptype] == icmp-echo"
QUEUE_PACKETS = 8  # the tap's queue during the staircase: short, so that it overflows within seconds
CLOCK_MONOTONIC_COARSE = 6  # clock_getres(2): its resolution is the tick of the host kernel
IP_RECVERR = 11  # ip(7): errors of the device, ENOBUFS among them, are reported to the sender


@dataclass(frozen=True)
class StoppedPing:
    """A ping stopped inside the kernel: where, and its packet."""

    stopped: wire.Stopped
    packet: Packet | None
    age_ms: float | None
    client: process.Client


@dataclass(frozen=True)
class Stop:
    """One held ping: for how long the kernel was stopped, and what the client measured."""

    icmp_seq: int
    held_s: float
    rtt_ms: float | None
    packet: dict[str, Any] | None
    backtrace: tuple[dict[str, Any], ...]


@dataclass(frozen=True)
class Staircase:
    """Pings that piled up behind a held one. ``enobufs`` counts sends that the full queue refused."""

    interval_s: float
    held_s: float
    rtts_ms: tuple[float, ...]
    enobufs: int
    link: str


@dataclass(frozen=True)
class Result:
    """The whole experiment, as printed by ``--json``. ``lost`` counts pings that were sent and never answered."""

    kernel: str
    function: str
    baseline_ms: tuple[float, ...]
    stops: tuple[Stop, ...]
    staircase: Staircase | None
    lost: int


class PingExperiment:
    """The steps of the experiment, on a running lab."""

    def __init__(self, lab: Lab, function: str) -> None:
        self.lab = lab
        self.function = function
        self.lost = 0
        self._stop_number = 0
        self.debugger: Debugger

    def baseline(self, count: int, interval_s: float) -> tuple[float, ...]:
        """Ping the undisturbed guest; return the RTTs in ms."""
        replies = self._finish(self._ping(count, interval_s), count * interval_s)
        return tuple(reply.rtt_ms for reply in replies)

    def attach(self, debugger: Debugger) -> None:
        """Use an attached gdb: stop the kernel whenever a packet enters the function, and resume it until then."""
        self.debugger = debugger
        self._stop_number = debugger.set_stop(self.function)
        debugger.resume()

    def stop_ping(self, *, count: int = 1, interval_s: float = 1.0) -> StoppedPing:
        """Start a ping and wait until its first packet is stopped in the function.

        :raises Timeout: the packet does not enter the function
        """
        client = self._ping(count, interval_s)
        patience_s = ARRIVAL_TIMEOUT_S if find_gdb().origin == "wheel" else SLOW_ARRIVAL_TIMEOUT_S
        deadline = time.monotonic() + patience_s
        while True:
            try:
                stopped = self.debugger.wait_stop(max(deadline - time.monotonic(), 0))
            except Timeout:
                client.kill()
                said = client.communicate()[0].decode(errors="replace").strip()
                if places := inlined_into(self.lab.image, self.function):
                    said += f"\n{self.function}() was also {in_words(places)}: packets there do not stop here"
                raise Timeout(
                    f"no ping has entered {self.function}() within {patience_s:g} s", found=said,
                    hint="choose a function on a ping's way: ip_rcv, icmp_rcv, icmp_echo, ip_output",
                ) from None  # fmt: skip
            raw = stopped.packet
            packet = Packet(bytes.fromhex(raw.linear), raw.protocol) if raw else None
            if stopped.reason == "stop" and (packet is None or packet.echo):
                sent_s = packet.ping_sent_s if packet else None
                behind_s = (time.monotonic_ns() - stopped.at_ns) / 1e9
                age_ms = (time.time() - behind_s - sent_s) * 1e3 if sent_s else None
                return StoppedPing(stopped, packet, age_ms, client)
            self.debugger.resume()

    def stay_stopped(self, ping: StoppedPing, hold_s: float) -> None:
        """Wait until the kernel has been stopped for *hold_s*; return early if the guest or gdb ends."""
        left_s = hold_s - (time.monotonic_ns() - ping.stopped.at_ns) / 1e9
        watched: list[Debugger | int] = [self.debugger, self.lab.guest.pidfd]
        ready = wait(watched, max(left_s, 0))
        if ready:
            self.lab.check()
            self.debugger.evaluate("1")  # gdb sent something unrequested: it has ended, and this raises the error

    def resume(self, ping: StoppedPing, *, last: bool = False) -> float:
        """Resume the kernel; return for how long it was stopped, in s. The *last* time, remove the stop."""
        if last:
            self.debugger.clear_stop(self._stop_number)
        return (self.debugger.resume() - ping.stopped.at_ns) / 1e9

    def outcome(self, ping: StoppedPing, held_s: float) -> Stop:
        """Wait for the ping's end and combine both sides' measurements."""
        replies = self._finish(ping.client, 0)
        echo = ping.packet.echo if ping.packet else None
        first = replies[0] if replies else None
        return Stop(
            icmp_seq=echo[2] if echo else 1,
            held_s=round(held_s, 6),
            rtt_ms=first.rtt_ms if first else None,
            packet=describe(ping),
            backtrace=tuple(
                {"function": frame.function, "file": frame.file, "line": frame.line} for frame in ping.stopped.frames
            ),
        )

    def hold_ping(self, hold_s: float) -> Stop:
        """In virtual time: hold a ping in the function while the guest's kernel runs on.

        :raises Timeout: the packet does not enter the function
        """
        with self.lab.hold(self.function, ECHO_REQUEST) as held:
            client = self._ping(1, 1)
            (packet,) = held.take()
            self.lab.clock.advance(hold_s)
            packet.release()
            replies = self._finish(client, 0)
        kind, identity, sequence = packet.packet.echo or ("", None, None)
        return Stop(
            icmp_seq=sequence or 1,
            held_s=packet.age_s,
            rtt_ms=replies[0].rtt_ms if replies else None,
            packet={
                "summary": packet.summary(),
                "source": packet.packet.source,
                "destination": packet.packet.destination,
                "type": kind,
                "id": identity,
                "seq": sequence,
                "len": packet.hit.length,
                "skb": f"{packet.skb:#x}",
            },
            backtrace=tuple(
                {"function": frame.function, "file": frame.file, "line": frame.line} for frame in packet.backtrace
            ),
        )

    def staircase(self, hold_s: float, interval_s: float) -> Staircase:
        """Hold one ping until others have filled the link's queue behind it."""
        if hold_s < (QUEUE_PACKETS + 2) * interval_s:
            raise UsageError(
                f"{hold_s:g} s is too short for a staircase of {QUEUE_PACKETS + 1} steps of {interval_s:g} s"
            )
        if self.lab.namespaces.link == "tap":
            self.lab.namespaces.shorten_queue(QUEUE_PACKETS)
        before = self.lab.link_losses
        ping = self.stop_ping(count=int(hold_s / interval_s), interval_s=interval_s)
        prober = Prober(self.lab, interval_s / 2)
        self.stay_stopped(ping, (QUEUE_PACKETS + 1.5) * interval_s)  # ping alone fills the queue
        with prober:
            self.stay_stopped(ping, hold_s)
        held_s = self.resume(ping, last=True)
        replies = self._finish(ping.client, interval_s)
        self.lab.excuse(Losses(for_guest=(self.lab.link_losses - before).for_guest))
        waited = [reply.rtt_ms for reply in replies if reply.rtt_ms >= interval_s * 500]
        return Staircase(interval_s, round(held_s, 6), tuple(waited), prober.refused, self.lab.namespaces.link)

    def _ping(self, count: int, interval_s: float) -> process.Client:
        guest = self.lab.namespaces.addresses.guest[0].split("/")[0]
        # ping waits by SO_RCVTIMEO, and the host's kernel adds a tick to that (kernel/time/timer.c schedule_timeout()).
        pause_s = max(interval_s - time.clock_getres(CLOCK_MONOTONIC_COARSE), interval_s / 2)
        argv = ["ping", "-n", "-c", str(count), "-i", f"{pause_s:.3f}", "-W", str(FOREVER_S), guest]
        return self.lab.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, new_session=True)

    def _finish(self, client: process.Client, within_s: float) -> list[PingReply]:
        """Wait for a ping's end, for *within_s* and LINGER_S for its last reply; return its replies."""
        try:
            said = client.communicate(timeout=within_s + LINGER_S)[0].decode(errors="replace")
        except subprocess.TimeoutExpired:
            client.send_signal(signal.SIGINT)  # ping prints its summary and ends
            said = client.communicate()[0].decode(errors="replace")
        replies = parse_ping(said, exact=self.lab.guest.clock.is_virtual)
        sent = int(said.split(" packets transmitted")[0].split()[-1]) if " packets transmitted" in said else 0
        if not sent:
            self.lab.check()
            raise SkblabError("ping sent nothing", found=said.strip())
        self.lost += sent - len({reply.icmp_seq for reply in replies})
        return replies


class Prober:
    """Send echo requests and count the refused ones.

    ping reports ENOBUFS only after seconds of it (iputils ping_common.c pinger()).
    """

    def __init__(self, lab: Lab, interval_s: float) -> None:
        self.refused = 0
        self._interval_s = interval_s
        self._address = (lab.namespaces.addresses.guest[0].split("/")[0], 0)
        self._socket = lab.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._socket.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._probe, name="prober", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        self._socket.close()

    def _probe(self) -> None:
        request = echo_request(0xFFFF, 0)
        while not self._enough.wait(self._interval_s):
            try:
                self._socket.sendto(request, self._address)
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                self.refused += 1


def describe(ping: StoppedPing) -> dict[str, Any] | None:
    """Return the stopped packet as fields, for JSON."""
    packet, raw = ping.packet, ping.stopped.packet
    if packet is None or raw is None:
        return None
    kind, identity, sequence = packet.echo or ("", None, None)
    return {
        "summary": packet.summary(),
        "source": packet.source,
        "destination": packet.destination,
        "type": kind,
        "id": identity,
        "seq": sequence,
        "age_ms": None if ping.age_ms is None else round(ping.age_ms, 3),
        "len": raw.len,
        "dev": raw.dev,
        "skb": f"{raw.skb:#x}",
    }
