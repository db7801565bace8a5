"""A trace for Perfetto (ui.perfetto.dev): a track for each packet, calls as slices, arrows to what a packet causes."""

from pathlib import Path
from typing import TYPE_CHECKING

from skblab import files
from skblab.errors import TraceError
from skblab.trace.journey import Call, Journey, journeys
from skblab.trace.model import Step, Trace
from skblab.trace.words import fields_of, reason_in_words, value_in_words

if TYPE_CHECKING:
    from perfetto.protos.perfetto.trace.perfetto_trace_pb2 import TracePacket
    from perfetto.trace_builder.proto_builder import TraceProtoBuilder

SEQUENCE = 1
ROOT = 1  # the kernel's track; packets' have 16 more than their number
FIRST_PACKET = 16
REALTIME, MONOTONIC, BOOTTIME = 1, 3, 6  # protos/perfetto/common/builtin_clock.proto


def write_perfetto(trace: Trace, path: Path) -> int:
    """Write a trace to a new file for Perfetto; return the number of slices.

    :raises TraceError: the package ``perfetto`` is not installed
    :raises CannotWrite: there is such a file, or it cannot be written
    """
    try:
        from perfetto.trace_builder.proto_builder import TraceProtoBuilder  # noqa: PLC0415 - 0.2 s, and 1 MB
    except ImportError as error:
        raise TraceError("the package perfetto is not installed", hint="pip install 'skblab[perfetto]'") from error
    builder = TraceProtoBuilder()
    written = _Writer(trace, builder).write()
    with files.whole(path, new=True) as file:
        file.write(builder.serialize())
    return written


class _Writer:
    def __init__(self, trace: Trace, builder: "TraceProtoBuilder") -> None:
        self._trace = trace
        self._builder = builder
        self._slices = 0
        self._flows: dict[int, list[int]] = {}
        for kin in trace.kin:
            self._flows.setdefault(kin.call, []).append(kin.packet)
        self._begun: set[int] = set()

    def write(self) -> int:
        self._clock()
        self._track(ROOT, f"Linux {self._trace.about['release']}", parent=0)
        for journey in journeys(self._trace):
            if journey.is_of_network:
                self._journey(journey)
        return self._slices

    def _packet(self, at_ns: int = 0) -> "TracePacket":
        packet = self._builder.add_packet()
        packet.trusted_packet_sequence_id = SEQUENCE
        if at_ns:
            packet.timestamp = at_ns
            packet.timestamp_clock_id = MONOTONIC
        return packet

    def _clock(self) -> None:
        """Tie the host's monotonic clock to wall-clock time."""
        clock = self._trace.about["clock"]
        snapshot = self._packet().clock_snapshot
        for number, name in ((MONOTONIC, "monotonic_ns"), (REALTIME, "realtime_ns"), (BOOTTIME, "monotonic_ns")):
            one = snapshot.clocks.add()
            one.clock_id, one.timestamp = number, clock[name]

    def _track(self, number: int, name: str, *, parent: int) -> None:
        descriptor = self._packet().track_descriptor
        descriptor.uuid, descriptor.name = number, name
        if parent:
            descriptor.parent_uuid = parent

    def _journey(self, journey: Journey) -> None:
        for packet in journey.packets.values():
            if packet.steps:
                parent = FIRST_PACKET + packet.origin.other if packet.origin else ROOT
                self._track(FIRST_PACKET + packet.number, f"{packet.number}: {packet.summary}", parent=parent)
        for call in journey.calls:
            self._call(call, journey.first.number)

    def _call(self, call: Call, around: int) -> None:
        """Write a call and all calls in it. A call without a packet is on the track of the call around it."""
        step = call.step
        number = step.packet or around
        if step.took_ns is None:
            self._event("TYPE_INSTANT", step.at_ns, number, call)
        else:
            self._event("TYPE_SLICE_BEGIN", step.at_ns, number, call)
        for one in call.inner:
            self._call(one, number)
        if step.took_ns is not None:
            event = self._packet(step.end_ns).track_event
            event.type = event.TYPE_SLICE_END
            event.track_uuid = FIRST_PACKET + number
        self._slices += 1

    def _event(self, kind: str, at_ns: int, number: int, call: Call) -> None:
        step = call.step
        event = self._packet(at_ns).track_event
        event.type = getattr(event, kind)
        event.track_uuid = FIRST_PACKET + number
        event.name = f"{step.function.name}()"
        reason = reason_in_words(self._trace, step)
        event.categories.append("drop" if reason else step.function.file.partition("/")[0] or "kernel")
        for packet in self._flows.get(step.call, []):
            event.flow_ids.append(packet)
        if step.packet and step.packet not in self._begun:
            self._begun.add(step.packet)
            event.terminating_flow_ids.append(step.packet)
        for name, value in _facts(self._trace, step, reason).items():
            annotation = event.debug_annotations.add()
            annotation.name = name
            if isinstance(value, int) and value >= 1 << 63:
                annotation.uint_value = value
            elif isinstance(value, int):
                annotation.int_value = value
            else:
                annotation.string_value = value


def _facts(trace: Trace, step: Step, reason: str) -> dict[str, int | str]:
    facts: dict[str, int | str] = {"file": f"{step.function.file}:{step.function.line}", "caller": f"{step.caller:#x}"}
    if step.packet:
        facts |= {
            "skb": f"{step.skb:#x}",
            "len": step.length,
            "device": step.device,
            "mark": step.mark,
        }
    if value := value_in_words(step):
        facts["returned"] = value
    if reason:
        facts["drop reason"] = reason
    if step.verdict:
        facts["verdict"] = step.verdict
    return facts | fields_of(trace, step)
