"""A journey as a tree of calls: time, duration, packet, device, function, and what happened there."""

from collections.abc import Iterator

from rich.text import Text

from skblab.trace.journey import Call, Journey
from skblab.trace.model import Trace
from skblab.trace.words import (
    drop_in_words,
    fields_of,
    kin_in_words,
    value_in_words,
)

US = 1000
DEVICE_WIDTH = 8


def lines(trace: Trace, journey: Journey) -> Iterator[Text]:
    """Yield the lines of a journey."""
    several = len(journey.packets) > 1
    for packet in journey.packets.values():
        if packet.steps:
            line = Text(f"packet {packet.number}  ", style="bold").append(packet.summary, style="bold cyan")
            if packet.origin:
                line.append(f"   from packet {packet.origin.other}", style="dim")
            yield line
    width = max(DEVICE_WIDTH, *(len(call.step.device) + 1 for _, call in journey.walk()))
    yield Text(f"{'us':>11}{'took':>9}  {'packet  ' if several else ''}{'device':{width}}", style="dim")
    device = ""
    for depth, call in journey.walk():
        step = call.step
        line = Text(f"{(step.at_ns - journey.begin_ns) / US:11.2f}", style="dim")
        line.append(f"{step.took_ns / US:9.2f}" if step.took_ns is not None else " " * 9, style="dim")
        if several:
            line.append(f"  {step.packet or '':<6}", style="dim")
        here = step.device or (device if not step.packet else "")
        line.append(f"  {here if here != device else '':{width}}", style="green")
        device = here
        line.append("  " * depth + step.function.name, style="bold red" if drop_in_words(trace, call) else "")
        line.append("()", style="dim")
        for word, style in notes(trace, call):
            line.append("  ").append(word, style=style)
        yield line


def notes(trace: Trace, call: Call) -> Iterator[tuple[str, str]]:
    """Yield the notes behind a call's name, each with its style."""
    step = call.step
    if step.verdict:
        yield step.verdict, "bold yellow"
    if step.resumed:
        yield "released", "yellow"
    for change in call.changes:
        yield change, "magenta"
    for name, value in fields_of(trace, step).items():
        yield f"{name}={value}", "blue"
    if step.has_reason and trace.is_consumed(step):
        yield "consumed", "dim"
    if reason := drop_in_words(trace, call):
        yield f"drop: {reason}", "bold red"
    if step.freed:
        yield "freed", "dim"
    if value := value_in_words(step):
        yield f"= {value}", "dim"
    for kin in call.came:
        yield kin_in_words(kin), "yellow"
