"""Follow packets through a running lab's kernel, and write down where they go."""

import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skblab.agent import abi
from skblab.agent.control import Agent
from skblab.agent.points import choose, passages
from skblab.errors import GuestLost, TraceError
from skblab.filter import compile_filter
from skblab.image.fields import Field, resolve_fields
from skblab.image.image import Image
from skblab.image.reasons import reasons
from skblab.trace.file import END, META, TOLD, VERSION, TraceWriter
from skblab.trace.model import Trace
from skblab.trace.reader import load


class Tracer:
    """Packets are followed while this is entered; ``trace()`` is what they did.

    :param patterns: of functions' names (``tcp_*``) or files (``net/ipv4/*.c``); none: all that take a packet
    :param calls: likewise, of functions that need not take a packet: what is called in a packet's course
    :param filter: pcap-filter(7): a packet that it takes at any function is followed from there on
    :param fields: ``skb->dev->name``: more of the packet's members at each step
    :param returns: tell of each call how long it took, and what it returned; without, nothing is known of which call
        happens in which, nor of the packets that a packet causes
    :param to: the trace file; none: one that is gone after ``trace()``
    :param about: more to be written down, of who asked for it
    """

    def __init__(
        self,
        agent: Agent,
        image: Image,
        patterns: Sequence[str] = (),
        *,
        calls: Sequence[str] = (),
        filter: str = "",  # noqa: A002
        fields: Sequence[str] = (),
        returns: bool = True,
        to: Path | None = None,
        about: dict[str, Any] | None = None,
    ) -> None:
        """Find everything.

        :raises UnknownFunction: a pattern names no function
        :raises RuleError: libpcap does not understand the filter
        :raises TraceError: a field is none, or there are too many
        """
        self._agent = agent
        self._image = image
        self.passages = passages(image, choose(image, patterns, calls), returns=returns)
        if len(self.passages) > abi.POINTS:
            raise TraceError(f"{len(self.passages)} functions are too many", found=f"{abi.POINTS} at most")
        self.fields = resolve_fields(image, fields)
        self._check_fields(self.fields)
        text_start, text_end = image.functions.text
        self._follow = abi.Follow(
            compile_filter(filter),
            tuple(abi.Field(one.offsets, one.size_bytes) for one in self.fields),
            text_start,
            text_end,
        )
        self._about = {"filter": filter, **(about or {})}
        self._to = to
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
        self._writer = TraceWriter(self._to)
        self._forget = weakref.finalize(self, self._writer.close)
        channel = self._agent.channel
        self._before = (channel.steps_lost, channel.forgotten, channel.unhooked)
        self._writer.tell(META, self._describe())
        self._ended = False
        try:
            points = [one.point for one in self.passages]
            refused = {
                point.number for point in self._agent.follow(self._follow, points, self._writer.steps, self._witness)
            }
        except BaseException:
            self._forget()
            raise
        self.refused = [one.function.name for one in self.passages if one.point.number in refused]
        return self

    @property
    def path(self) -> Path:
        """The trace file; one that has no name has one here as long as there is this."""
        return self._writer.path

    @property
    def grown(self) -> threading.Event:
        """Set when the trace file has become longer."""
        return self._writer.grown

    def _witness(self, hit: abi.Hit, function: str, verdict: str, at_ns: int) -> None:
        """Write down what a rule did to a packet, or what became of one that it held."""
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
        self._writer.tell(TOLD, fields | {"occurrence": hit.occurrence})

    def end(self, **fields: object) -> None:
        """Follow no more; write down what was lost, and *fields*. Safe to call twice.

        :raises CannotWrite: the file is not whole; ``trace()`` has what was written
        """
        if self._ended:
            return
        self._ended = True
        self._agent.unfollow()
        self._writer.tell(END, {**self.losses(), **fields})
        self._writer.end()
        if self._writer.failed:
            raise self._writer.failed

    def losses(self) -> dict[str, int]:
        """Return what could not be told since the trace began: records, packets, returns."""
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

    def trace(self) -> Trace:
        """Return what the packets did; of a trace that was not to be kept, the file is gone then.

        :raises CannotWrite: it is the first to find that the file is not whole
        :raises TraceError: the file is gone
        """
        self.end()
        if self._to is None and not self._forget.alive:
            raise TraceError("a trace that is not kept can be had once", hint="to=FILE keeps it")
        try:
            return load(self.path)
        finally:
            self._forget()

    def _describe(self) -> dict[str, Any]:
        functions = {
            one.point.number: (
                one.function.name, one.function.file, one.function.line, one.function.signature,
                one.function.return_type, one.function.address,
            )
            for one in self.passages
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
                "realtime_ns": time.time_ns(),
                "monotonic_ns": time.monotonic_ns(),
            },
            "fields": [(one.expression, one.kind, one.size_bytes, one.bits, one.shift) for one in self.fields],
            "reasons": {number: name for name, number in reasons(self._image.source).items()},
            **self._about,
        }
