"""Rules in force: arming them in the agent, and calling their listeners."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Self

from skblab.agent import abi
from skblab.agent.compile import compile_rule, compile_surrounding, compile_watch
from skblab.agent.link import Link
from skblab.agent.packets import HeldPacket
from skblab.errors import CallbackFailed, GuestLost, SkblabError, Timeout, UsageError
from skblab.event import Hit
from skblab.host.process import undisturbed
from skblab.image.image import Image
from skblab.image.index import Function
from skblab.image.missing import find_function
from skblab.image.split import name_at
from skblab.packet import Packet
from skblab.rule import Inside, Rule

Listener = Callable[[abi.Hit, HeldPacket | None], None]
"""Called on the reading thread for each hit of a rule; with the packet where it is held."""


def ignore(*_: object) -> None:
    """Listen to nothing."""


NO_RULE = (None, ignore)
DISARM_S = 20.0  # of this machine's time, in virtual time: a guest that computes for ever answers nothing


class Armed:
    """A rule that is in force, until ``disarm()`` or the end of the ``with``."""

    def __init__(self, rules: "Rules", number: int, rule: Rule, surrounding: "Armed | None" = None) -> None:
        self._rules = rules
        self._last: abi.Counts | None = None
        self._surrounding = surrounding
        self.number = number
        self.rule = rule

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disarm(raising=error is None)

    @property
    def in_force(self) -> bool:
        """Whether it was not disarmed yet."""
        return self._last is None

    @property
    def counts(self) -> abi.Counts:
        """What has become of the packets that the rule's filter took."""
        return self._last or self._counts()

    @property
    def inside(self) -> int:
        """As abi.Arm has it."""
        return self._surrounding.number + 1 if self._surrounding else 0

    def _counts(self) -> abi.Counts:
        counts = self._rules.counts(self.number)
        if self._surrounding is None:
            return counts
        calls = self._surrounding.counts
        return dataclasses.replace(counts, surrounded=calls.arrived, not_surrounded=calls.too_many)

    def disarm(self, *, raising: bool = True) -> None:
        """End the rule; what it holds is released. Safe to call twice.

        :param raising: false where an error is raised already, which says more than those of the rule's end
        :raises CallbackFailed: its listener has raised
        :raises Timeout: the agent has not answered; the rule is still in force
        """
        if self._last is None:
            try:
                with undisturbed(only_once=True):
                    error = self._rules.disarm(self.number)
                    self._last = self._counts()
                    if self._surrounding:
                        self._surrounding.disarm()
            except Timeout:
                if raising:
                    raise
                return
            if error and raising:
                raise CallbackFailed(str(self.rule), error) from error


class Rules:
    """The rules of one controller, by their numbers.

    :param image: whose functions they are at
    :param lease_s: how long a held packet waits for a decision; 0: for ever
    :param machines: those that a filter may name, and their addresses
    """

    def __init__(self, link: Link, image: Image, lease_s: float, machines: Mapping[str, Sequence[str]]) -> None:
        self.image = image
        self.machines = machines
        self._link = link
        self._free = list(range(abi.BY_HAND - 1, -1, -1))
        self._lease_s = lease_s
        self._in_force: dict[int, tuple[Rule, Listener]] = {}
        self._callers: dict[int, str] = {}  # by the return address
        self._kept: dict[int, abi.Counts] = {}  # once the channel is closed
        self._kept_lost = 0

    @property
    def changed(self) -> threading.Condition:
        """The condition of those who wait for events."""
        return self._link.changed

    def arm(
        self,
        rule: Rule,
        listener: Listener = ignore,
        *,
        lease_s: float | None = None,
        at_once: bool = False,
        in_order: bool = False,
    ) -> Armed:
        """Put a rule in force.

        :param lease_s: how long a held packet waits for a decision, if not as long as for other rules
        :param at_once: in virtual time, the guest's kernel stands still until a packet is decided on, or
            ``HeldPacket.later()``
        :param in_order: what the function gets while a packet is held waits behind it, and goes on after it

        :raises UnknownFunction: there is no such function
        :raises UnsupportedVerdict: the verdict is not sound there
        :raises RuleError: libpcap does not understand the filter
        """
        arm = self._compile(rule, find_function(self.image, rule.function), lease_s)
        arm = arm._replace(at_once=int(at_once), in_order=int(in_order))
        if rule.inside is None:
            return self.arm_as(rule, arm, listener)
        surrounding = self._arm_surrounding(rule.inside)
        try:
            return self.arm_as(rule, arm._replace(inside=surrounding.number + 1), listener, surrounding)
        except BaseException:
            surrounding.disarm(raising=False)
            raise

    def _arm_surrounding(self, inside: Inside) -> Armed:
        function = find_function(self.image, inside.function)
        arm = compile_surrounding(inside, function, self.image, self.machines)
        return self.arm_as(Rule(inside.function, "accept", filter=inside.filter), arm)

    def arm_at(self, rule: Rule, function: Function, listener: Listener = ignore) -> Armed:
        """Put a rule in force at a function that need not be the image's."""
        return self.arm_as(rule, self._compile(rule, function), listener)

    def watch(self, function: str, listener: Listener) -> Armed:
        """Have *listener* called whenever a function is entered, whether it has a packet or not.

        :raises UnknownFunction: there is no such function
        """
        return self.arm_as(Rule(function, "trace"), compile_watch(find_function(self.image, function)), listener)

    def refilter(self, armed: Armed, expression: str) -> None:
        """Replace the filter of a rule that is in force; what it holds stays held, its counts go on.

        :raises RuleError: libpcap does not understand the filter; nothing was changed
        """
        rule = dataclasses.replace(armed.rule, filter=expression)
        arm = self._compile(rule, find_function(self.image, rule.function))
        arm = arm._replace(inside=armed.inside)
        self._send(armed.number, arm, f"another filter at {rule.function}()")
        armed.rule = rule

    def disarm(self, number: int) -> Exception | None:
        """End a rule; what it holds is released. Return the first error of its listener.

        :raises Timeout: the agent has not answered; the rule is still in force, and can be disarmed later
        """
        if self._link.is_forked:
            return None
        hurried = self._link.clock.hurried(DISARM_S)
        with hurried, contextlib.suppress(GuestLost):  # its rules are gone with it
            # Refused where the rule went with its function's module: that is what was wanted.
            self._link.ask_each(
                [lambda cookie: abi.encode_decide(abi.Command.DISARM, cookie, rule=number)], "disarming"
            )
        self._forget(number)
        return self._link.callbacks.take_error(number)

    def counts(self, number: int) -> abi.Counts:
        """Return what has become of a rule's packets."""
        try:
            return self._link.channel.counts(number)
        except ValueError:  # it is closed
            return self._kept[number]

    @property
    def lost(self) -> int:
        """How many events found their ring full since the guest booted."""
        try:
            return self._link.channel.lost
        except ValueError:
            return self._kept_lost

    def keep_counts(self) -> None:
        """Keep the counts of the rules that are in force when the channel is closed."""
        self._kept = {number: self.counts(number) for number in tuple(self._in_force)}
        self._kept_lost = self.lost

    def event(self, hit: abi.Hit, function: str, verdict: str) -> Hit:
        """Return what people see of a hit; the packet as the agent sent it."""
        at_ns, packet = self._link.channel.host_ns(hit.at_ns), Packet(hit.data, hit.protocol)
        caller = "" if hit.skb else self._caller_of(hit)
        return Hit(at_ns, function, hit.occurrence, packet, verdict, hit.skb, hit.length, caller)

    def _caller_of(self, hit: abi.Hit) -> str:
        """Return the function that called, or the return address where the index has no function there."""
        for _, address in hit.stack[:1]:
            if address not in self._callers:
                found = name_at(self.image, address - 1)  # a call may be its function's last instruction
                self._callers[address] = f"{found}()" if found else f"{address:#x}"
            return self._callers[address]
        return ""

    @staticmethod
    def event_of(held: HeldPacket, verdict: str, packet: Packet) -> Hit:
        """Return what people see of a packet that was held, *packet* before the verdict; also of a closed channel's."""
        hit = held.hit
        return Hit(held.held_at_ns, held.function, hit.occurrence, packet, verdict, hit.skb, hit.length)

    def of(self, hit: abi.Hit) -> tuple[Rule | None, Listener]:
        """Return a hit's rule and its listener; no rule for a debugger's, and for that of a rule that has ended."""
        return self._in_force.get(hit.rule, NO_RULE)

    def arm_as(self, rule: Rule, arm: abi.Arm, listener: Listener = ignore, surrounding: Armed | None = None) -> Armed:
        """Put a compiled rule in force; with the one that surrounds the calls that it is inside."""
        with self._link.changed:
            if not self._free:
                raise UsageError(f"there are {abi.BY_HAND} rules already")
            number = self._free.pop()
            self._in_force[number] = (rule, listener)
        try:
            self._send(number, arm, f"arming {rule.function}()")
        except BaseException as error:
            if isinstance(error, SkblabError) and not isinstance(error, Timeout):
                self._forget(number)
            else:  # the agent may still arm it: no other rule may get this number
                with undisturbed(), contextlib.suppress(Timeout, GuestLost):
                    self._link.send(abi.encode_decide(abi.Command.DISARM, 0, rule=number))
            raise
        return Armed(self, number, rule, surrounding)

    def _compile(self, rule: Rule, function: Function, lease_s: float | None = None) -> abi.Arm:
        lease_s = self._lease_s if lease_s is None else lease_s
        return compile_rule(rule, function, self.image, lease_s, self._link.clock.seed(), self.machines)

    def _send(self, number: int, arm: abi.Arm, what: str) -> None:
        self._link.ask(lambda cookie: arm.encode(number, cookie), what)

    def _forget(self, number: int) -> None:
        with self._link.changed:
            if self._in_force.pop(number, None):
                self._free.append(number)
