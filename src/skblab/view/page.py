"""A trace as one page that is complete in itself.

The data are columns with a number for each step, which a browser parses fast. What few steps have (changes, bytes,
reasons) is stored by the step's index.
"""

from pathlib import Path
from typing import Any

from skblab.trace.journey import Call, Journey, journeys, packet_at
from skblab.trace.model import Trace
from skblab.trace.words import drop_in_words, fields_of, kin_in_words, value_in_words
from skblab.view import self_contained

HERE = Path(__file__).parent


def write_page(trace: Trace, path: Path) -> None:
    """Write the journeys of a trace to a new page.

    :raises CannotWrite: there is such a file, or it cannot be written
    """
    title = " ".join(trace.about.get("command") or ["trace"])
    self_contained.write(HERE / "page.html", title, _data(trace), path)


def _data(trace: Trace) -> dict[str, Any]:
    """Return what the page's script reads."""
    columns = _Columns(trace)
    shown = [one for one in journeys(trace) if one.is_of_network]
    for journey in shown:
        columns.add(journey)
    return {
        "about": {
            "command": " ".join(trace.about.get("command") or []),
            "release": trace.about["release"],
            "filter": trace.about.get("filter", ""),
            "lost": trace.end.get("lost"),
            "begin_ms": _wall_ms(trace, shown[0].begin_ns) if shown else 0,
        },
        "functions": columns.functions,
        "journeys": columns.journeys,
        "packets": columns.packets,
        "steps": columns.steps,
        "notes": columns.notes,
        "bytes": columns.bytes,
        "lines": columns.lines,
        "stacks": columns.stacks,
    }


def _wall_ms(trace: Trace, at_ns: int) -> float:
    clock = trace.about["clock"]
    shift_ns: int = clock["realtime_ns"] - clock["monotonic_ns"]
    return (at_ns + shift_ns) / 1e6


class _Columns:
    """The page's data: a column for each number that every step has."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._places: dict[str, int] = {}
        self.functions: list[tuple[str, str, int, str]] = []
        self.journeys: list[dict[str, Any]] = []
        self.packets: dict[int, dict[str, Any]] = {}
        self.steps: dict[str, list[int]] = {
            name: [] for name in ("function", "at", "took", "depth", "packet", "length")
        }
        self.notes: dict[int, list[tuple[str, str]]] = {}
        self.bytes: dict[int, str] = {}
        self.lines: dict[int, tuple[str, dict[str, int]]] = {}  # of those bytes: tcpdump's line, and header fields
        self.stacks: dict[int, list[str]] = {}
        self._begin_ns = 0
        self._shown: dict[int, bytes] = {}

    def add(self, journey: Journey) -> None:
        """Add a journey with all its steps."""
        self._begin_ns = self._begin_ns or journey.begin_ns
        first = len(self.steps["at"])
        dropped = ""
        for depth, call in journey.walk():
            dropped = self._add_step(journey, depth, call) or dropped
        for packet in journey.packets.values():
            if packet.steps:
                self.packets[packet.number] = {
                    "summary": packet.summary,
                    "from": packet.origin.other if packet.origin else 0,
                }
        replies = [packet for packet in journey.packets.values() if packet.origin and packet.steps]
        end_ns = max(packet.steps[-1].at_ns for packet in replies) if replies else journey.end_ns
        held_ns = _held_ns(journey)
        self.journeys.append(
            {
                "first": first,
                "count": len(self.steps["at"]) - first,
                "at": journey.begin_ns - self._begin_ns,
                "took": end_ns - journey.begin_ns,
                "held": held_ns,
                "packet": journey.first.number,
                "packets": [packet.number for packet in journey.packets.values() if packet.steps],
                "dropped": dropped,
            }
        )

    def _add_step(self, journey: Journey, depth: int, call: Call) -> str:
        step, place = call.step, len(self.steps["at"])
        values = (self._function(call), step.at_ns - journey.begin_ns, -1 if step.took_ns is None else step.took_ns,
                  depth, step.packet, step.length)  # fmt: skip
        for column, value in zip(self.steps.values(), values, strict=True):
            column.append(value)
        if step.packet and self._shown.get(step.packet) != step.data:
            self._shown[step.packet] = step.data
            self.bytes[place] = step.data.hex()
            packet = packet_at(step)
            if packet.is_readable:
                self.lines[place] = packet.summary(), packet.header_fields
        reason = drop_in_words(self._trace, call)
        notes = [("change", change) for change in call.changes]
        notes += [("field", f"{name} = {value}") for name, value in fields_of(self._trace, step).items()]
        notes += [("drop", reason)] if reason else []
        notes += [("verdict", step.verdict)] if step.verdict else []
        notes += [("held", "released")] if step.resumed else []
        notes += [("kin", kin_in_words(kin)) for kin in call.came]
        if step.device:
            notes.append(("device", step.device))
        if returned := value_in_words(step):
            notes.append(("value", returned))
        if step.freed:
            notes.append(("end", "freed"))
        if notes:
            self.notes[place] = notes
        if reason and step.stack:
            self.stacks[place] = [str(frame) for frame in self._trace.backtrace(step)]
        return reason

    def _function(self, call: Call) -> int:
        function = call.step.function
        if function.name not in self._places:
            self._places[function.name] = len(self.functions)
            self.functions.append((function.name, function.file, function.line, function.signature))
        return self._places[function.name]


def _held_ns(journey: Journey) -> int:
    """Return the sum of the times for which packets of a journey were held, in ns."""
    last: dict[int, int] = {}
    held_ns = 0
    for _, call in journey.walk():
        step = call.step
        if step.resumed:
            held_ns += step.at_ns - last.get(step.packet, step.at_ns)
        last[step.packet] = step.at_ns
    return held_ns
