"""Read a trace file: the agent's records and the chunks around them become a Trace."""

import json
import struct
from bisect import bisect_left
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skblab.agent import abi
from skblab.errors import TraceError
from skblab.trace import shape
from skblab.trace.file import END, META, RULE, STEP, VERSION, chunks_of, read_content
from skblab.trace.model import Kin, Step, Trace, TracedFunction
from skblab.trace.shape import fits, fits_if_there
from skblab.verdict import RETURN

LAST_NS = (1 << 62) - 1
CALLS = 1 << 32  # agent_step.call is a __u32
NO_MORE = abi.MoreRecord(mark=0, hash=0, reason=0)


class Reader:
    """Parse the records of steps, one after another. A return completes its step."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._functions = {int(number): TracedFunction(*fields) for number, fields in trace.about["functions"].items()}
        self._shift_ns: int = trace.about["clock"]["host_ns"] - trace.about["clock"]["guest_ns"]
        self._field_bytes = sum(size_bytes for _, _, size_bytes, _, _ in trace.about["fields"])
        self._rest = b""
        self._open: dict[int, Step] = {}
        self._seen: dict[int, bytes] = {}
        self._devices = {0: ""}

    def take(self, piece: memoryview) -> None:
        """Parse records. The last one may be cut off: the next piece has the rest.

        :raises TraceError: a record is damaged
        """
        records = memoryview(self._rest + bytes(piece)) if self._rest else piece
        try:
            place = self._take(records)
        except (KeyError, ValueError, TypeError, struct.error):  # no such function; no such role, time or size
            raise TraceError("a record of the trace is damaged") from None
        self._rest = bytes(records[place:])

    @property
    def in_a_record(self) -> bool:
        """Whether the rest of a record is missing."""
        return bool(self._rest)

    def _take(self, records: memoryview) -> int:
        place = 0
        while place + abi.RECORD.size <= len(records):
            size, kind, number = abi.RECORD.unpack_from(records, place)
            if size < abi.RECORD.size:
                raise ValueError(size)
            if place + size > len(records):
                break
            if kind == abi.StepKind.STEP:
                self._step(records[place : place + size], self._functions[number])
            elif kind == abi.StepKind.RETURNED:
                self._return(records[place : place + size])
            elif kind == abi.StepKind.DEVICE:
                self._device(records[place : place + size])
            elif kind == abi.StepKind.KIN:
                self._kin(records[place : place + size], self._functions[number])
            place += size
        return place

    def _host_ns(self, guest_ns: int) -> int:
        at_ns = guest_ns + self._shift_ns
        if not 0 <= at_ns <= LAST_NS:
            raise ValueError(at_ns)
        return at_ns

    def _step(self, record: memoryview, function: TracedFunction) -> None:
        it = abi.StepRecord._make(abi.STEP.unpack_from(record))
        place = abi.STEP.size
        more = NO_MORE
        if it.flags & abi.StepFlag.MORE:
            more = abi.MoreRecord._make(abi.MORE.unpack_from(record, place))
            place += abi.MORE.size
        if it.flags & abi.StepFlag.CHANGED:
            self._seen[it.packet] = bytes(record[place : place + it.captured_bytes])
            place += -(-it.captured_bytes // abi.ALIGNMENT) * abi.ALIGNMENT
        fields = bytes(record[place : place + self._field_bytes]) if it.packet else b""
        place += -(-len(fields) // abi.ALIGNMENT) * abi.ALIGNMENT
        stack = tuple((word >> abi.STACK_SHIFT, word & abi.STACK_ADDRESS) for word in record[place:].cast("Q"))
        device = self._devices.get(it.device, str(it.device))
        step = Step(
            function, self._host_ns(it.at_ns), it.packet, it.call, it.outer, it.length, it.skb, it.caller, more.mark,
            more.hash, device, more.reason, it.data_offset, it.protocol, self._seen.get(it.packet, b""),
            bool(it.flags & abi.StepFlag.CHANGED), bool(it.flags & abi.StepFlag.FREED),
            bool(it.flags & abi.StepFlag.RESUMED), bool(it.flags & abi.StepFlag.SHARED_HEAD),
            bool(it.flags & abi.StepFlag.LET_GO), fields, stack,
        )  # fmt: skip
        self._trace.steps.append(step)
        self._open[it.call] = step
        if step.freed:
            self._seen.pop(it.packet, None)

    def _return(self, record: memoryview) -> None:
        it = abi.ReturnRecord._make(abi.RETURN.unpack_from(record))
        step = self._open.pop(it.call, None)
        if step:
            step.took_ns = abi.took_ns(it.took)
            step.value = it.value

    def _kin(self, record: memoryview, function: TracedFunction) -> None:
        it = abi.KinRecord._make(abi.KIN.unpack_from(record))
        self._trace.kin.append(
            Kin(function, self._host_ns(it.at_ns), it.packet, it.other, it.call, abi.Role(it.role), it.skb)
        )

    def _device(self, record: memoryview) -> None:
        it = abi.DeviceRecord._make(abi.DEVICE.unpack_from(record))
        self._devices[it.device] = it.name.rstrip(b"\0").decode(errors="replace")


class Loader:
    """Build a trace from the chunks of a file, one after another."""

    def __init__(self) -> None:
        self.trace: Trace | None = None
        self._reader: Reader | None = None

    def take(self, kind: bytes, payload: memoryview) -> bool:
        """Take the next chunk; return False where it was cut off, or where META is missing before it."""
        if kind == STEP and self._reader:
            self._reader.take(payload)
        elif kind in {META, RULE, END}:
            try:
                fields = json.loads(bytes(payload))
            except ValueError:
                return False
            if kind == META:
                self.trace = Trace(_checked_about(fields))
                self._reader = Reader(self.trace)
            elif self.trace is None:
                return False
            elif not (fits(fields, shape.END) if kind == END else _is_verdict(fields)):
                raise TraceError("a chunk of the trace is damaged", found=json.dumps(fields)[:200])
            elif kind == RULE:
                self.trace.verdicts.append(fields)
                _note_verdict(self.trace.steps, fields)
            elif self._reader and self._reader.in_a_record:
                raise TraceError("the trace is damaged: its last record is longer than the file")
            else:
                self.trace.end = fields
        return self.trace is not None


def _checked_about(fields: object) -> dict[str, Any]:
    """Return the fields of the META chunk.

    :raises TraceError: it is damaged, or of a format that this version does not know
    """
    about: dict[str, Any] = fields if isinstance(fields, dict) else {}
    version = about.get("version")
    if type(version) is int and version != VERSION:
        raise TraceError(
            f"the trace is of format {version}",
            found=f"this version of skblab reads format {VERSION}",
            hint="read it with the skblab that has written it, or trace again",
        )
    if not (fits(about, shape.ABOUT) and fits_if_there(about, shape.ABOUT_MORE)):
        raise TraceError("the trace is damaged: its first chunk is not that of a trace")
    return about


def _is_verdict(fields: dict[str, Any]) -> bool:
    return fits(fields, shape.VERDICT) and fits_if_there(fields, shape.VERDICT_MORE)


def _note_verdict(steps: list[Step], said: dict[str, Any]) -> None:
    """Note a verdict at the step that it names; the end of a hold has the step of its begin."""
    step = _step_of(steps, said["packet"], said["call"])
    if step is None:
        return  # the packet is not followed
    verdict: str = said["verdict"]
    if said.get("held_ns") is not None:
        step.verdict += f": {verdict} after {said['held_ns'] / 1e6:.2f} ms"
    else:
        where = "" if step.function.name == said["function"] else f" at {said['function']}()"
        step.verdict += ", " * bool(step.verdict) + verdict + where
    step.by_rule |= verdict.startswith(("drop", RETURN))  # "drop", "dropped"; "return -ENOMEM"


def _step_of(steps: list[Step], packet: int, call: int) -> Step | None:
    """Return a packet's step by its call. Steps are in the order of their calls, whose numbers wrap at 2^32."""
    if not steps:
        return None
    first = steps[0].call
    place = bisect_left(steps, (call - first) % CALLS, key=lambda step: (step.call - first) % CALLS)
    step = steps[place % len(steps)]
    return step if (step.packet, step.call) == (packet, call) else None


def load(path: Path, progress: Callable[[float], None] = lambda _: None) -> Trace:
    """Read a trace file.

    :param progress: called with the part that has been read, up to 1
    :raises TraceError: the file cannot be read, is no trace, or is damaged
    """
    loader = Loader()
    content, done = read_content(path), 0
    for kind, payload in chunks_of(content):
        if not loader.take(kind, payload):
            break
        done += len(payload)
        progress(done / len(content))
    if loader.trace is None:
        raise TraceError(f"{path} is empty", found="it was cut off before its first chunk ended")
    return loader.trace
