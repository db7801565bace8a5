"""Trace packets through the kernel of a running lab, into a file."""

import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skblab.agent import abi
from skblab.agent.conditions import compile_whole
from skblab.agent.control import Agent
from skblab.agent.probes import choose, probes_of
from skblab.errors import GuestLost, TraceError, check_lists
from skblab.image.fields import Field, resolve_fields
from skblab.image.image import Image
from skblab.image.reasons import reasons
from skblab.trace.file import END, META, RULE, VERSION, TraceWriter
from skblab.trace.model import Trace
from skblab.trace.reader import load


@dataclass(frozen=True)
class TraceSpec:
    """What to trace.

    :param patterns: of functions' names (``tcp_*``) or files (``net/ipv4/*.c``); none: all that take a packet
    :param calls: patterns of functions that need not take a packet; each call is traced that a followed packet causes
    :param filter: pcap-filter(7), and conditions: a packet that matches at any function is followed from there on
    :param fields: members of the packet at each step, ``skb->dev->name``
    :param returns: trace returns, too: duration, return value, which call is in which, which packet causes which
    :param to: the trace file; none: one without a name, which ``trace()`` takes away
    :param about: more members of the META chunk
    """

    patterns: Sequence[str] = ()
    calls: Sequence[str] = ()
    filter: str = ""
    fields: Sequence[str] = ()
    returns: bool = True
    to: Path | None = None
    about: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_lists(patterns=self.patterns, calls=self.calls, fields=self.fields)


class Tracer:
    """Trace packets in a ``with``; afterwards ``trace()`` returns the trace."""

    def __init__(self, agent: Agent, image: Image, spec: TraceSpec) -> None:
        """Find the functions and fields.

        :raises UnknownFunction: a pattern names no function
        :raises RuleError: libpcap does not understand the filter
        :raises TraceError: a field does not exist, or there are too many functions or fields
        """
        self._agent = agent
        self._image = image
        self.probes = probes_of(image, choose(image, spec.patterns, spec.calls), returns=spec.returns)
        if len(self.probes) > abi.TRACE_PROBES:
            raise TraceError(f"{len(self.probes)} functions are too many", found=f"{abi.TRACE_PROBES} at most")
        self.fields = resolve_fields(image, spec.fields)
        self._check_fields(self.fields)
        text_start, text_end = image.functions.text
        program, conditions = compile_whole(spec.filter, image, agent.rules.machines)
        self._follow = abi.Follow(
            program,
            tuple(abi.Field(one.offsets, one.size_bytes) for one in self.fields),
            text_start,
            text_end,
            conditions,
        )
        self._spec = spec
        self.refused: list[str] = []

    @staticmethod
    def _check_fields(fields: list[Field]) -> None:
        if len(fields) > abi.FIELDS:
            raise TraceError(f"{len(fields)} fields are too many", found=f"{abi.FIELDS} at most")
        for one in fields:
            if one.size_bytes > abi.FIELD_BYTES:
                raise TraceError(f"{one.expression} is too large", found=f"{one.size_bytes} bytes",
                                 hint=f"a member of it, of {abi.FIELD_BYTES} bytes at most")  # fmt: skip
            if len(one.offsets) > abi.FIELD_HOPS:
                raise TraceError(f"{one.expression} lies behind too many pointers")

    def __enter__(self) -> Self:
        self._writer = TraceWriter(self._spec.to)
        self._forget = weakref.finalize(self, self._writer.close)
        channel = self._agent.channel
        self._before = (channel.steps_lost, channel.forgotten, channel.unhooked)
        self._writer.write(META, self._describe())
        self._ended = False
        try:
            commands = [one.command for one in self.probes]
            refused = {
                probe.number
                for probe in self._agent.follower.follow(self._follow, commands, self._writer.steps, self._witness)
            }
        except BaseException:
            self._forget()
            raise
        self.refused = [one.function.name for one in self.probes if one.command.number in refused]
        return self

    @property
    def path(self) -> Path:
        """The trace file; an unnamed one has a path in ``/proc`` until ``trace()`` has read it."""
        return self._writer.path

    @property
    def grown(self) -> threading.Event:
        """The event that is set when the trace file grows."""
        return self._writer.grown

    def _witness(self, hit: abi.Hit, function: str, verdict: str, at_ns: int) -> None:
        """Write a rule's verdict on a packet, or the end of its hold."""
        fields: dict[str, Any] = {
            "time_ns": at_ns,
            "function": function,
            "skb": f"{hit.skb:#x}",
            "packet": hit.followed,
            "call": hit.call,
            "verdict": verdict,
        }
        if held_ns := at_ns - self._agent.channel.host_ns(hit.at_ns):
            fields["held_ns"] = held_ns
        self._writer.write(RULE, fields | {"occurrence": hit.occurrence})

    def end(self, **fields: object) -> None:
        """Stop following packets; write the counts of what was lost, and *fields*. Safe to call twice.

        :raises CannotWrite: the file is not whole; ``trace()`` has what was written
        """
        if self._ended:
            return
        self._ended = True
        self._agent.follower.unfollow()
        self._writer.write(END, {**self.losses(), **fields})
        self._writer.end()
        if self._writer.failed:
            raise self._writer.failed

    def losses(self) -> dict[str, int]:
        """Return the counts of lost records, forgotten packets and unhooked calls since the trace began."""
        channel = self._agent.channel
        now = (channel.steps_lost, channel.forgotten, channel.unhooked)
        return dict(zip(("lost", "forgotten", "unhooked"), (a - b for a, b in zip(now, self._before, strict=True)),
                        strict=True))  # fmt: skip

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.end()
        except GuestLost:
            if error is None:
                raise

    def trace(self, progress: Callable[[float], None] = lambda _: None) -> Trace:
        """Return the trace. A file without a name is gone afterwards.

        :param progress: called with the part that has been read, up to 1
        :raises CannotWrite: the file is not whole, and ``end()`` was not called before
        :raises TraceError: the file is gone
        """
        self.end()
        if self._spec.to is None and not self._forget.alive:
            raise TraceError("a trace that is not kept can be had once", hint="to=FILE keeps it")
        try:
            return load(self.path, progress)
        finally:
            self._forget()

    def _describe(self) -> dict[str, Any]:
        functions = {
            one.command.number: (
                one.function.name, one.function.file, one.function.line, one.function.signature,
                one.function.return_type, one.function.address,
            )
            for one in self.probes
        }  # fmt: skip
        channel = self._agent.channel
        return {
            "version": VERSION,
            "release": self._image.release,
            "image": str(self._image.path),
            "functions": functions,
            "clock": {
                "guest_ns": 0,
                "host_ns": channel.host_ns(0),
                "realtime_ns": self._agent.link.clock.realtime_ns,
                "monotonic_ns": self._agent.link.clock.monotonic_ns,
            },
            "fields": [(one.expression, one.kind, one.size_bytes, one.bits, one.shift) for one in self.fields],
            "reasons": {number: name for name, number in reasons(self._image.source).items()},
            "filter": self._spec.filter,
            **self._spec.about,
        }
