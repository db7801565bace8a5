"""Tell the agent what to do, and hear what it tells: one thread reads, anybody may ask."""

import contextlib
import dataclasses
import errno
import functools
import itertools
import logging
import os
import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from skblab.agent import abi
from skblab.agent.channel import Channel
from skblab.agent.functions import check
from skblab.agent.packets import HeldPacket, State
from skblab.edit import Edited
from skblab.errors import AgentDamaged, CallbackFailed, GuestLost, PacketError, SkblabError, Timeout, UsageError
from skblab.filter import compile_filter
from skblab.image.image import Image
from skblab.image.index import SKB_TYPE, Function, Parameter
from skblab.image.missing import find_function
from skblab.image.reasons import drop_reason
from skblab.image.unwind import Unwinder
from skblab.rule import Rule

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 10.0
COUNT_TIMEOUT_S = 1.0
CLOSE_TIMEOUT_S = 10.0
POINTS_AT_ONCE = 4096  # that fit into the ring of commands
SHOWN_BYTES = 128  # of a packet that is only told of
WHOLE_PACKET = 0xFFFF
MOST_MEMORY_MIB = 1984  # of a guest: the agent lies behind it, and a call of 5 bytes reaches 2 GiB
DEFAULT_LEASE_S = 60.0  # a program that hangs gives its packets back after that time
DEVICE_TYPE, SOCKET_TYPE, NET_TYPE = "struct net_device *", "struct sock *", "struct net *"
VERDICTS = {
    "accept": abi.Verdict.ACCEPT, "trace": abi.Verdict.TRACE, "hold": abi.Verdict.HOLD, "delay": abi.Verdict.HOLD,
    "drop": abi.Verdict.DROP, "duplicate": abi.Verdict.DUPLICATE, "edit": abi.Verdict.HOLD, "stop": abi.Verdict.STOP,
}  # fmt: skip

WRITE_REFUSALS = {
    errno.EOPNOTSUPP: (
        "this edit of a GSO packet is not sound: it stands for several segments, and all headers keep their sizes",
        "in the guest: ip link set DEVICE gro_max_size 0 (for what it receives), or gso_max_segs 1 (for what it sends)",
    ),
    errno.EMSGSIZE: ("the edited packet is longer than its device takes", "edit it before fragmentation: at ip_output"),
    errno.EBUSY: ("somebody else reads this packet, so it cannot be edited", "edit it at another function"),
}  # fmt: skip

Listener = Callable[[abi.Hit, HeldPacket | None], None]
"""Called on the reading thread for each hit of a rule; with the packet, where it is held."""

Witness = Callable[[abi.Hit, str, str, int], object]
"""Called on the reading thread for each verdict on a packet: the hit, the function, what was done, when (host's ns)."""


def _refusal(what: str, number: int) -> SkblabError:
    """Return the error for what the agent has answered, an errno."""
    if number == errno.ERANGE:
        return SkblabError(
            f"the agent cannot do that: {what}",
            found="it is too far from the kernel's functions: the guest's memory lies between them",
            hint=f"--memory {MOST_MEMORY_MIB}, or less",
        )
    return SkblabError(f"the agent refused: {what}", found=os.strerror(number))


class Armed:
    """A rule that is in force, until ``disarm()`` or the end of the ``with``."""

    def __init__(self, agent: "Agent", number: int, rule: Rule) -> None:
        self._agent = agent
        self._last: abi.Counts | None = None
        self.number = number
        self.rule = rule

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disarm(raising=error is None)

    @property
    def counts(self) -> abi.Counts:
        """What has become of the packets that the rule's filter took."""
        return self._last or self._agent.channel.counts(self.number)

    def disarm(self, *, raising: bool = True) -> None:
        """Take the rule away; what it holds is released. Safe to call twice.

        :raises CallbackFailed: its listener raised meanwhile; not where *raising* is false
        """
        if self._last is None:
            error = self._agent.disarm(self.number)
            self._last = self._agent.channel.counts(self.number)
            if error and raising:
                raise CallbackFailed(str(self.rule), error) from error


class Agent:
    """The agent of a running guest."""

    def __init__(
        self, channel: Channel, image: Image, lost: Callable[[], SkblabError], lease_s: float = DEFAULT_LEASE_S
    ) -> None:
        self.channel = channel
        self._pid = os.getpid()
        self._lease_s = lease_s
        self._image = image
        self._lost = lost
        self._cookies = itertools.count(1)
        self._asked: set[int] = set()  # cookies whose answers are waited for
        self._answers: dict[int, abi.Done] = {}
        self._news = threading.Condition()
        self._gone = False
        self._following = False
        self._rules: dict[int, tuple[Rule, Listener]] = {}
        self._failed: dict[int | None, Exception] = {}  # the first error of each rule's callback; None: a trace's
        self._free = list(range(abi.BY_HAND - 1, -1, -1))
        self._held: dict[int, HeldPacket] = {}
        self._when_gone: list[Callable[[], None]] = []
        self._steps: Callable[[memoryview], object] = lambda _: None
        self._witness: Witness = lambda *_: None
        self._reader = threading.Thread(target=self._read, name="skblab-agent", daemon=True)
        self._reader.start()

    def close(self) -> None:
        """Hang up; the agent releases what it holds and disarms everything."""
        self.channel.hang_up()
        self._reader.join(CLOSE_TIMEOUT_S)
        if self._reader.is_alive():  # its memory cannot be taken from under it
            log.warning("a callback of a rule or a trace has not returned within %g s", CLOSE_TIMEOUT_S)
        else:
            self.channel.close()

    def knows(self, image: Image) -> None:
        """Know the functions of an image from now on: a guest's kernel has more when it has loaded modules."""
        self._image = image

    @property
    def gone(self) -> bool:
        """Whether the agent, or the host's end of the conversation, is gone."""
        return self._gone

    def when_gone(self, tell: Callable[[], None]) -> None:
        """Have something called on the reading thread when the agent is gone."""
        self._when_gone.append(tell)

    def lost(self) -> SkblabError:
        """Return the error that tells how the agent went, for the caller to raise."""
        return self._lost()

    def refuse_to_wait(self) -> None:
        """Refuse to wait on the reading thread: what is waited for comes by that thread.

        :raises UsageError: this is it, in somebody's callback
        """
        if threading.current_thread() is self._reader:
            raise UsageError(
                "a callback cannot wait for the agent, whose answer comes once the callback has returned",
                hint="decide in a thread of your own: lab.hold(), and take(); release() and drop() do not wait",
            )

    def wait_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        """Wait until what the agent tells makes something true, or the agent is gone; whether it is true."""
        if not done():
            self.refuse_to_wait()
        with self._news:
            self._news.wait_for(lambda: done() or self._gone, timeout_s)
            return done()

    def wait_ready(self) -> None:
        """Wait until the agent is there.

        :raises Timeout: it is not
        :raises GuestLost: the guest kernel is gone
        """
        self._wait(lambda: self.channel.ready, READY_TIMEOUT_S, "the agent to load")

    def arm(self, rule: Rule, listener: Listener = lambda *_: None) -> Armed:
        """Put a rule in force.

        :raises UnknownFunction: there is no such function
        :raises UnsupportedVerdict: the verdict is not sound there
        :raises RuleError: libpcap does not understand the filter
        """
        return self._arm(rule, self._describe(rule, find_function(self._image, rule.function)), listener)

    def _arm(self, rule: Rule, arm: Callable[[int], abi.Arm], listener: Listener) -> Armed:
        with self._news:
            if not self._free:
                raise UsageError(f"there are {abi.BY_HAND} rules already")
            number = self._free.pop()
            self._rules[number] = (rule, listener)
        try:
            self._ask(lambda cookie: arm(number).encode(cookie), f"arming {rule.function}()")
        except BaseException as error:
            if isinstance(error, SkblabError) and not isinstance(error, Timeout):
                self._forget(number)
            else:  # it may come into force yet; the number is not to be another rule's
                with contextlib.suppress(Timeout, GuestLost):
                    self._send(abi.encode_decide(abi.Command.DISARM, 0, rule=number))
            raise
        return Armed(self, number, rule)

    def refilter(self, armed: Armed, expression: str) -> None:
        """Let a rule that is in force take other packets from now on; what it holds stays held, its counts go on.

        :raises RuleError: libpcap does not understand the filter; nothing was changed
        """
        rule = dataclasses.replace(armed.rule, filter=expression)
        describe = self._describe(rule, find_function(self._image, rule.function))
        self._ask(lambda cookie: describe(armed.number).encode(cookie), f"another filter at {rule.function}()")
        armed.rule = rule

    def watch(self, function: str, listener: Listener) -> Armed:
        """Be told whenever a function is entered, whether it has a packet or not.

        :raises UnknownFunction: there is no such function
        """
        address = find_function(self._image, function).address
        return self._arm(
            Rule(function, "trace"),
            lambda number: abi.Arm(number, address, abi.Verdict.TRACE, skb_argument=abi.NO_PACKET),
            listener,
        )

    def follow(
        self,
        follow: abi.Follow,
        points: Sequence[abi.Point],
        take: Callable[[memoryview], object],
        witness: Witness = lambda *_: None,
    ) -> list[abi.Point]:
        """Follow packets through functions, until ``unfollow()``; return the points that the agent could not set.

        :param take: called on the reading thread with the records of steps, whole ones (kernel/agent/agent_abi.h)
        :param witness: called, after the step in question, with what rules do meanwhile
        :raises UsageError: packets are followed already
        """
        if self._following:
            raise UsageError("packets are followed already in this lab", hint="one trace at a time")
        self._following = True
        self._steps, self._witness = take, witness
        try:
            return self._follow(follow, points)
        except BaseException:
            with contextlib.suppress(Timeout):
                self.unfollow()
            raise

    def _follow(self, follow: abi.Follow, points: Sequence[abi.Point]) -> list[abi.Point]:
        self._ask(follow.encode, "following packets")
        refused = []
        for first in range(0, len(points), POINTS_AT_ONCE):
            asked = points[first : first + POINTS_AT_ONCE]
            answers = self._ask_each([point.encode for point in asked], "arming functions")
            results = [answer.result for answer in answers]
            if -errno.ERANGE in results:
                raise _refusal("arming functions", errno.ERANGE)
            refused += [point for point, result in zip(asked, results, strict=True) if result < 0]
        return refused

    @property
    def _is_a_forks(self) -> bool:
        """Whether this is the copy of a forked child, whose parent goes on with what it has asked for."""
        return os.getpid() != self._pid

    def unfollow(self) -> None:
        """Follow packets no more; all steps have been given when this returns."""
        if self._is_a_forks:
            return
        try:
            self._ask(lambda cookie: abi.encode_decide(abi.Command.UNFOLLOW, cookie), "ending a trace")
        except GuestLost:
            pass
        finally:
            self._following = False
            self._witness = lambda *_: None
        if error := self._failed.pop(None, None):
            raise error

    def arm_measured(self, rule: Rule) -> Armed:
        """Put a rule in force at a function that does nothing, and that ``measure_ns()`` alone calls."""
        address = self.channel.measured_address
        function = Function("agent_measured", address, 0, "", 0, "void", (Parameter("skb", SKB_TYPE),))
        return self._arm(rule, self._describe(rule, function), lambda *_: None)

    def measure_ns(self, frame: bytes, calls: int) -> float:
        """Return what one call of that function takes in the guest, with an Ethernet frame as if received."""
        took_ns = self._ask(
            lambda cookie: abi.encode_decide(abi.Command.MEASURE, cookie, number=calls, data=frame), "measuring"
        )
        return took_ns / calls

    def link_losses(self) -> tuple[int, int, int]:
        """Return how many frames the guest's ends of the links have lost: cut, without memory, refused by the host.

        A guest that stands still, or is gone, cannot say: then it is what it has said last.
        """
        what = "counting what the links have lost"
        if self.channel.ready:
            with contextlib.suppress(SkblabError):
                self._ask(lambda cookie: abi.encode_decide(abi.Command.LOSSES, cookie), what, timeout_s=COUNT_TIMEOUT_S)
        return self.channel.link_losses

    def disarm(self, number: int) -> Exception | None:
        """Take a rule away; what it holds is released. Return the first error of its callback.

        :raises Timeout: the agent has not answered; the rule is still in force, and can be taken away later
        """
        if self._is_a_forks:
            return None
        with contextlib.suppress(GuestLost):  # and its rules with it
            # An answer that there is no such rule is none to complain of: it went with its function's module.
            self._ask_each([lambda cookie: abi.encode_decide(abi.Command.DISARM, cookie, rule=number)], "disarming")
        self._forget(number)
        return self._failed.pop(number, None)

    def decide(self, command: abi.Command, packet: int, *, after_ns: int = 0, number: int = 0) -> None:
        """Tell the agent about one held packet; an answer that it has gone meanwhile is no error."""
        self._ask(
            lambda cookie: abi.encode_decide(command, cookie, packet=packet, after_ns=after_ns, number=number),
            command.name.lower(),
            quick=command in {abi.Command.RELEASE, abi.Command.DISCARD},
        )

    def write(self, packet: int, edited: Edited, *, within_mtu: bool) -> None:
        """Write a held packet's bytes, from its network header on.

        :param within_mtu: nothing fragments it any more: its device must take it
        :raises PacketError: the agent refused; the packet is as it was
        """
        flags = abi.WriteFlag(0)
        if within_mtu:
            flags |= abi.WriteFlag.WITHIN_MTU
        if edited.distrusted:
            flags |= abi.WriteFlag.DISTRUST
        (answer,) = self._ask_each(
            [
                lambda cookie: abi.encode_write(
                    cookie,
                    packet=packet,
                    data=edited.packet.data,
                    data_offset=edited.data_offset,
                    checksum=(edited.pending.start, edited.pending.offset),
                    flags=flags,
                )
            ],
            "writing a packet",
        )
        if answer.result < 0:
            what, hint = WRITE_REFUSALS.get(-answer.result, ("the agent refused to write the packet", ""))
            raise PacketError(what, found=answer.note or os.strerror(-answer.result), hint=hint)

    def release_by_hand(self, packet: int = 0) -> None:
        """Let go of what a debugger has the agent hold: a packet of that number, or all."""
        if not packet:
            self.link_losses()  # its answer stands behind the event of a packet that was held just before gdb ended
        with self._news:
            ours = [number for number, held in self._held.items() if held.hit.rule == abi.BY_HAND]
        for number in [packet] if packet else ours:
            self.decide(abi.Command.RELEASE, number)

    def _describe(self, rule: Rule, function: Function) -> Callable[[int], abi.Arm]:
        """Return what the agent has to know of a rule, for the number it will have."""
        takeover = check(rule.verdict, function, self._file_of)
        types = [parameter.type for parameter in function.parameters[:6]]
        occurrence = rule.occurrence
        whole = rule.verdict in {"hold", "edit"}
        code = compile_filter(rule.filter)
        reason = drop_reason(self._image, rule.reason)
        text_start, text_end = self._image.functions.text if rule.verdict == "hold" else (0, 0)
        return lambda number: abi.Arm(
            rule=number,
            address=function.address,
            verdict=VERDICTS[rule.verdict],
            filter=code,
            first=occurrence.first,
            last=occurrence.last,
            every=occurrence.every,
            delay_ns=max(rule.delay_ns, 1) if rule.verdict == "delay" else 0,
            jitter_ns=rule.jitter_ns,
            lease_ns=round(self._lease_s * 1e9),
            text_start=text_start,
            text_end=text_end,
            chance=0 if occurrence.percent in {0, 100} else max(int(occurrence.percent / 100 * (1 << 32)), 1),
            seed=occurrence.seed or int.from_bytes(os.urandom(4)),
            reason=reason,
            copies=rule.copies,
            captured_bytes=WHOLE_PACKET if whole else SHOWN_BYTES,
            held_returns=takeover.held if takeover else 0,
            dropped_returns=takeover.dropped if takeover else 0,
            skb_argument=function.skb_parameter or 0,
            device_arguments=bits(types, DEVICE_TYPE),
            socket_arguments=bits(types, SOCKET_TYPE),
            net_arguments=bits(types, NET_TYPE),
        )

    @functools.cached_property
    def unwinder(self) -> Unwinder:
        """What makes a backtrace of a hit's stack."""
        return Unwinder(self._image)

    def _name_of(self, hit: abi.Hit, rule: Rule | None) -> str:
        """Return the name of the function of a hit; a debugger's has no rule."""
        function = None if rule else self._image.functions.at(hit.address)
        return rule.function if rule else function.name if function else "?"

    def _file_of(self, name: str) -> str:
        function = self._image.functions.lookup(name)
        return function.file if function else ""

    def _ask(
        self,
        encode: Callable[[int], bytes],
        what: str,
        *,
        quick: bool = False,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> int:
        """Send a command, wait for its answer and return it; a *quick* one is not waited for."""
        if quick:
            self._send(encode(0))
            return 0
        (answer,) = self._ask_each([encode], what, timeout_s)
        if answer.result < 0:
            raise _refusal(what, -answer.result)
        return answer.result

    def _ask_each(
        self, encode: Sequence[Callable[[int], bytes]], what: str, timeout_s: float = ANSWER_TIMEOUT_S
    ) -> list[abi.Done]:
        """Send commands, wait for all answers and return them."""
        self.refuse_to_wait()
        if self._gone:
            raise self._lost()
        cookies = [next(self._cookies) for _ in encode]
        with self._news:
            self._asked.update(cookies)
        try:
            for one, cookie in zip(encode, cookies, strict=True):
                self._send(one(cookie))
            self._wait(lambda: self._answers.keys() >= {*cookies}, timeout_s, what)
            return [self._answers[cookie] for cookie in cookies]
        finally:
            with self._news:  # an answer that comes too late is nobody's
                self._asked.difference_update(cookies)
                for cookie in cookies:
                    self._answers.pop(cookie, None)

    def _send(self, command: bytes) -> None:
        try:
            self.channel.send(command)
        except GuestLost:
            raise self._lost() from None

    def _wait(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        with self._news:
            if not self._news.wait_for(lambda: done() or self._gone, timeout_s):
                raise Timeout(f"the agent did not answer within {timeout_s:g} s", found=f"waited for: {what}")
            if not done():
                raise self._lost()

    def _forget(self, number: int) -> None:
        with self._news:
            if self._rules.pop(number, None):
                self._free.append(number)

    def _read(self) -> None:
        """Read events until the agent is gone; the reading thread."""
        try:
            while True:
                self.channel.wait(None)
                events = list(self.channel.events())
                self._take_steps()  # those that were told before the answer that ends a trace
                for event in events:
                    self._take(event)
                with self._news:
                    self._news.notify_all()
        except AgentDamaged as error:
            damaged = error
            self._lost = lambda: damaged
        except GuestLost:
            pass
        finally:
            with self._news:
                self._gone = True
                held, self._held = self._held, {}
                for packet in held.values():
                    packet.end(State.LOST, 0)
                self._news.notify_all()
            for tell in self._when_gone:
                self._guarded(None, tell)

    def _guarded(self, rule: int | None, call: Callable[..., object], *arguments: object) -> None:
        """Call what others gave us. An error of theirs must not end this thread; the first one is kept for the end."""
        try:
            call(*arguments)
        except Exception as error:  # noqa: BLE001 - raised where the rule, or the trace, ends
            self._failed.setdefault(rule, error)

    def _take_steps(self) -> None:
        def take(piece: memoryview) -> None:
            if None not in self._failed:  # a file of which a piece is missing is not to go on
                self._guarded(None, self._steps, piece)

        self.channel.steps(take)

    def _take(self, event: abi.Hit | abi.Done | abi.End) -> None:
        match event:
            case abi.Done():
                with self._news:
                    if event.cookie in self._asked:
                        self._answers[event.cookie] = event
            case abi.Hit():
                rule, listener = self._rules.get(event.rule, (None, None))
                held = HeldPacket(self, event, self._name_of(event, rule)) if event.packet else None
                if held:
                    self._held[event.packet] = held
                if rule and event.skb:
                    at_ns = self.channel.host_ns(event.at_ns)
                    self._guarded(None, self._witness, event, rule.function, rule.action, at_ns)
                if listener:
                    self._guarded(event.rule, listener, event, held)
            case abi.End(packet=abi.ALL):
                self._end([number for number, held in self._held.items() if held.hit.rule == event.rule], event)
            case abi.End():
                self._end([event.packet], event)

    def _end(self, packets: list[int], end: abi.End) -> None:
        state = State.DROPPED if end.dropped else State.RELEASED
        at_ns = self.channel.host_ns(end.at_ns)
        for packet in packets:
            if held := self._held.pop(packet, None):
                held.end(state, at_ns, end.cause)
                if self._following:
                    self._guarded(None, self._witness, held.hit, held.function, state.value, at_ns)


def bits(types: list[str], wanted: str) -> int:
    """Return a number whose bit n says whether argument n is of a type."""
    return sum(1 << place for place, one in enumerate(types) if one == wanted)
