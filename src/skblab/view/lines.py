"""A trace as JSON lines: docs/reference/trace-files.md has the schema."""

from collections.abc import Iterator, Sequence
from typing import Any

from skblab.agent.abi import Role
from skblab.trace.journey import Journey
from skblab.trace.model import Kin, Step, Trace
from skblab.trace.words import fields_of, reason_in_words, value_in_words


def objects(trace: Trace, chosen: Sequence[Journey] | None = None) -> Iterator[dict[str, Any]]:
    """Return everything as JSON objects, one a line: docs/reference/trace-files.md has the schema.

    :param chosen: leave out what is of none of these journeys
    """
    about: dict[str, Any] = {
        name: trace.about[name] for name in ("version", "release", "filter", "command") if name in trace.about
    }
    yield {"type": "trace", **about}
    steps, kin, verdicts = trace.steps, trace.kin, trace.verdicts
    if chosen is not None:
        steps = [call.step for journey in chosen for _, call in journey.walk()]
        packets = {number for journey in chosen for number in journey.packets}
        kin = [one for one in kin if one.packet in packets]
        verdicts = [one for one in verdicts if one["packet"] in packets]
    said: list[Step | Kin] = sorted([*steps, *kin], key=lambda one: one.at_ns)
    for one in said:
        yield _step(trace, one) if isinstance(one, Step) else _kin(one)
    for verdict in verdicts:
        yield {"type": "verdict", **verdict}
    yield {"type": "end", "whole": trace.whole, **trace.end}


def _step(trace: Trace, step: Step) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "type": "step",
        "time_ns": step.at_ns,
        "function": step.function.name,
        "packet": step.packet,
        "call": step.call,
        "outer": step.outer,
        "took_ns": step.took_ns,
        "returned": value_in_words(step) or None,
        "caller": f"{step.caller:#x}",
    }
    if step.packet:
        fields |= {
            "skb": f"{step.skb:#x}",
            "len": step.length,
            "device": step.device,
            "mark": step.mark,
            "hash": step.hash,
            "protocol": step.protocol,
            "freed": step.freed,
        }
    if step.changed:
        fields["data"] = step.data.hex()
    if reason := reason_in_words(trace, step):
        fields["reason"] = reason
    if step.verdict:
        fields["verdict"] = step.verdict
    return fields | {"fields": values} if (values := fields_of(trace, step)) else fields


def _kin(kin: Kin) -> dict[str, Any]:
    kind = {Role.BORN: "causes", Role.COPIED: "copied", Role.MERGED: "joins"}[kin.role]
    return {
        "type": "kin",
        "time_ns": kin.at_ns,
        "function": kin.function.name,
        "packet": kin.packet,
        "other": kin.other,
        "kind": kind,
        "call": kin.call,
    }
