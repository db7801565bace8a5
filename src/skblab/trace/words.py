"""Return values, drop reasons, fields and kin as text, the same in every view."""

import re

from skblab.agent.abi import Role
from skblab.image.fields import Field
from skblab.image.reasons import CONSUMED, NOT_SPECIFIED
from skblab.trace.journey import Call
from skblab.trace.model import Kin, Step, Trace

SIGNED = re.compile(r"^(int|long|s\d+|ssize_t|short|__s\d+|netdev_tx_t|enum .*)$")
NARROW = {"int": 32, "s32": 32, "__s32": 32, "short": 16, "s16": 16, "s8": 8}
ERRNO_MAX = 4095
BY_RULE = "by a rule"
NO_DROPS = frozenset({CONSUMED, "SKB_NOT_DROPPED_YET", "NOT_DROPPED_YET"})
KINSHIPS = {Role.BORN: "causes", Role.COPIED: "copied to", Role.MERGED: "joins"}


def value_in_words(step: Step) -> str:
    """Return a call's return value as its type prints it; "" for void, and where the return was not traced."""
    kind = step.function.return_type.removeprefix("const ")
    if step.value is None or kind == "void":
        return ""
    if kind.endswith("*"):
        error = step.value - (1 << 64)
        if -ERRNO_MAX <= error < 0:
            return str(error)
        return f"{step.value:#x}" if step.value else "NULL"
    if kind in {"bool", "_Bool"}:
        return "true" if step.value & 0xFF else "false"
    bits = NARROW.get(kind, 64 if "long" in kind or "64" in kind else 32)
    value = step.value & ((1 << bits) - 1)
    if SIGNED.match(kind) and value >> (bits - 1):
        value -= 1 << bits
    return str(value)


def reason_in_words(trace: Trace, step: Step) -> str:
    """Return the drop reason at a step, as this kernel names it; "" where the packet was not dropped."""
    if not step.has_reason:
        return ""
    name = str(trace.about["reasons"].get(str(step.reason), step.reason))
    return "" if name in NO_DROPS or (name == NOT_SPECIFIED and trace.is_consumed(step)) else name


def drop_in_words(trace: Trace, call: Call) -> str:
    """Return the drop reason in a call; "by a rule" where a rule dropped the packet, "" where nothing did.

    NOT_SPECIFIED is a drop, too: the kernel's source names no reason there.
    """
    reason = reason_in_words(trace, call.step)
    return BY_RULE if reason == NOT_SPECIFIED and call.by_rule else reason


def fields_of(trace: Trace, step: Step) -> dict[str, int | str]:
    """Return the values of the trace's fields at a step."""
    values: dict[str, int | str] = {}
    place = 0
    for expression, kind, size_bytes, bits, shift in trace.about["fields"]:
        if place + size_bytes <= len(step.fields):
            field = Field(expression, (), size_bytes, kind, bits, shift)
            values[expression] = field.value(step.fields[place : place + size_bytes])
        place += size_bytes
    return values


def kin_in_words(kin: Kin) -> str:
    """Return how a packet is related to another one."""
    if kin.role is Role.MERGED:
        return f"packet {kin.packet} joins packet {kin.other}"
    return f"{KINSHIPS[kin.role]} packet {kin.packet}"
