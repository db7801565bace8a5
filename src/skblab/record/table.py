"""Steps as a table, in pwru's manner, and as JSON lines."""

from collections.abc import Iterator
from typing import Any

from skblab.agent.abi import Role
from skblab.record.journey import is_readable, packet_at
from skblab.record.steps import Kin, Step, Trace
from skblab.record.words import fields_of, reason_in_words, value_in_words

HEADER = ("us", "took", "packet", "skb", "device", "proto", "mark", "len", "from, to", "function")
WIDTHS = (11, 9, 7, 11, 15, 6, 6, 6, 34, 0)  # of a device: IFNAMSIZ (include/uapi/linux/if.h), less its zero


def header() -> str:
    """Return the table's first line."""
    return "".join(_cell(name, width) for name, width in zip(HEADER, WIDTHS, strict=True))


def rows(trace: Trace, steps: list[Step], begin_ns: int) -> Iterator[str]:
    """Return the steps' lines, with times from *begin_ns* on."""
    for step in steps:
        packet = packet_at(step)
        ends = f"{packet.source} > {packet.destination}" if is_readable(step) else ""
        drop = f"drop: {reason}" if (reason := reason_in_words(trace, step)) else ""
        extra = [f"{name}={value}" for name, value in fields_of(trace, step).items()]
        yield "".join(
            _cell(text, width)
            for text, width in zip(
                (
                    f"{(step.at_ns - begin_ns) / 1000:.2f}",
                    f"{step.took_ns / 1000:.2f}" if step.took_ns is not None else "",
                    str(step.packet or ""),
                    f"{step.skb:x}" if step.skb else "",
                    step.device,
                    f"{step.protocol:04x}" if step.packet else "",
                    f"{step.mark:x}" if step.packet else "",
                    str(step.length) if step.packet else "",
                    ends,
                    " ".join(
                        [
                            step.function.name,
                            *(f"({said})" for said in (drop, step.verdict) if said),
                            *extra,
                        ]
                    ),
                ),
                WIDTHS,
                strict=True,
            )
        )


def _cell(text: str, width: int) -> str:
    return f"{text:<{width}} " if width else text


def objects(trace: Trace) -> Iterator[dict[str, Any]]:
    """Return everything as JSON objects, one a line: docs/reference/trace-files.md has the schema."""
    about: dict[str, Any] = {
        name: trace.about[name] for name in ("version", "release", "filter", "command") if name in trace.about
    }
    yield {"type": "trace", **about}
    said: list[Step | Kin] = sorted([*trace.steps, *trace.kin], key=lambda one: one.at_ns)
    for one in said:
        yield _step(trace, one) if isinstance(one, Step) else _kin(one)
    for told in trace.told:
        yield {"type": "verdict", **told}
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
