"""The agent in a running guest, seen from the host: its rules, its held packets, its trace, over one link."""

import contextlib
import functools
from collections.abc import Callable, Mapping, Sequence

from skblab.agent import abi
from skblab.agent.channel import Channel
from skblab.agent.follow import Follower
from skblab.agent.link import Link
from skblab.agent.packets import Holdings
from skblab.agent.rules import Armed, Rules
from skblab.clock import REAL, Clock
from skblab.errors import SkblabError
from skblab.image.image import Image
from skblab.image.index import SKB_TYPE, Function, Parameter
from skblab.image.unwind import Unwinder
from skblab.rule import Rule

COUNT_TIMEOUT_S = 1.0
DEFAULT_LEASE_S = 60.0  # a program that hangs gives its packets back after that time


class Agent:
    """The agent of a running guest.

    :param channel: the memory and the socket shared with it
    :param image: whose functions rules and traces are at
    :param lost: returns the error that says how the guest's kernel ended
    :param lease_s: how long a held packet waits for a decision; 0: for ever
    :param clock: the guest's
    :param machines: those that a filter may name, and their addresses
    """

    def __init__(
        self,
        channel: Channel,
        image: Image,
        lost: Callable[[], SkblabError],
        lease_s: float = DEFAULT_LEASE_S,
        clock: Clock = REAL,
        machines: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.channel = channel
        self.link = Link(channel, lost, clock)
        self.rules = Rules(self.link, image, lease_s, machines or {})
        self.held = Holdings(self.link, lambda: self._unwinder, lambda: self.rules.image)
        self.follower = Follower(self.link)
        self.link.start(self._hear, self.follower.take, self.held.lose)

    def close(self) -> None:
        """Hang up; the agent releases what it holds and disarms everything."""
        self.link.close(self.rules.keep_counts)

    def knows(self, image: Image) -> None:
        """Use the functions of another image from now on: a guest's kernel that has loaded modules has more."""
        self.rules.image = image

    def wait_ready(self) -> None:
        """Wait until the agent is loaded.

        :raises Timeout: it is not
        :raises GuestLost: the guest kernel is gone
        """
        self.link.wait_ready()

    def release_by_hand(self, packet: int = 0) -> None:
        """Release a packet that a debugger had the agent hold, or all of them (0)."""
        if not packet:
            self.link_losses()  # its answer stands behind the event of a packet that was held just before gdb ended
        self.held.release_by_hand(packet)

    def arm_measured(self, rule: Rule) -> Armed:
        """Put a rule in force at the agent's own function that does nothing; only ``measure_ns()`` calls it."""
        self.wait_ready()  # its address comes with that
        address = self.channel.measured_address
        function = Function("agent_measured", address, 0, "", 0, "void", (Parameter("skb", SKB_TYPE),))
        return self.rules.arm_at(rule, function)

    def measure_ns(self, frame: bytes, calls: int) -> float:
        """Return how long one call of that function takes in the guest, with an Ethernet frame as if received."""
        took_ns = self.link.ask(
            lambda cookie: abi.encode_decide(abi.Command.MEASURE, cookie, number=calls, data=frame), "measuring"
        )
        return took_ns / calls

    def link_losses(self) -> tuple[int, int, int]:
        """Return how many frames the guest's ends of the links have lost: cut, without memory, refused by the host.

        Where the guest is stopped or gone, this is what it reported last.
        """
        what = "counting what the links have lost"
        if self.channel.ready:
            with contextlib.suppress(SkblabError):
                self.link.ask(
                    lambda cookie: abi.encode_decide(abi.Command.LOSSES, cookie), what, timeout_s=COUNT_TIMEOUT_S
                )
        return self.channel.link_losses

    @functools.cached_property
    def _unwinder(self) -> Unwinder:
        return Unwinder(self.rules.image)

    def _hear(self, event: abi.Hit | abi.End) -> None:
        """Hand an event on; the reading thread."""
        if isinstance(event, abi.End):
            ended = self.held.end(event)
            for held in ended if self.follower.following else ():
                self.follower.saw(held.hit, held.function, held.state.value, held.ended_at_ns)
            return
        rule, listener = self.rules.of(event)
        function = rule.function if rule else self._function_of(event)
        packet = self.held.add(event, function) if event.packet else None
        if rule and event.skb and self.follower.following:
            self.follower.saw(event, function, rule.action, self.channel.host_ns(event.at_ns))
        self.link.callbacks.call(event.rule, listener, event, packet)

    def _function_of(self, hit: abi.Hit) -> str:
        """Return the name of the function of a hit that has no rule."""
        function = self.rules.image.functions.at(hit.address)
        return function.name if function else "?"
