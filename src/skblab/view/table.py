"""Steps as a table, as pwru prints them."""

from collections.abc import Iterator

from skblab.trace.journey import packet_at
from skblab.trace.model import Step, Trace
from skblab.trace.words import fields_of, reason_in_words

HEADER = ("us", "took", "packet", "skb", "device", "proto", "mark", "len", "from, to", "function")
WIDTHS = (11, 9, 7, 11, 15, 6, 6, 6, 34, 0)  # of a device: IFNAMSIZ (include/uapi/linux/if.h), less its zero


def header() -> str:
    """Return the table's first line."""
    return "".join(_cell(name, width) for name, width in zip(HEADER, WIDTHS, strict=True))


def rows(trace: Trace, steps: list[Step], begin_ns: int) -> Iterator[str]:
    """Yield a line for each step; times count from *begin_ns*."""
    for step in steps:
        packet = packet_at(step)
        ends = f"{packet.source} > {packet.destination}" if packet.is_readable else ""
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
