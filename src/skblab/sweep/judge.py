"""What a fault changed: the outcome of a cell beside that of the run without a fault."""

import itertools
from dataclasses import dataclass, fields

from skblab.sweep.cell import CellOutcome, Scenario, Seen

SLOWER_S = 0.001  # work takes no time: what takes longer has waited for a timer
KINDS = ("same", "slower", "faster", "unfired", "output", "failed", "hung", "complaint", "died", "lost")
BAD = frozenset(KINDS[KINDS.index("output") :])


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of a cell: its kind, and the words for the table."""

    kind: str
    words: str

    @property
    def is_bad(self) -> bool:
        """Whether the program did not cope with the fault."""
        return self.kind in BAD


def judge(baseline: CellOutcome, outcome: CellOutcome, scenario: Scenario) -> Judgement:  # noqa: PLR0911 - one a kind
    """Say what a cell's faults changed."""
    if outcome.end != "ended":
        return Judgement(outcome.end, outcome.end)
    if outcome.complaints != baseline.complaints:
        return Judgement("complaint", "complaint")
    if "status" in scenario.judged and outcome.status != baseline.status:
        return Judgement("failed", f"failed {outcome.status}")
    for part, before, now in zip(("stdout", "stderr"), baseline.digests, outcome.digests, strict=True):
        if part in scenario.judged and before != now:
            return Judgement("output", "other output")
    if not all(outcome.fired):
        return Judgement("unfired", "no such packet")
    longer_s = outcome.duration_s - baseline.duration_s
    if abs(longer_s) > SLOWER_S:
        return Judgement("slower" if longer_s > 0 else "faster", f"{longer_s:+.3f} s")
    return Judgement("same", "same")


def differences(first: CellOutcome, second: CellOutcome) -> list[str]:
    """Return in which fields two outcomes differ, a line each."""
    lines = []
    for field in fields(CellOutcome):
        before, now = getattr(first, field.name), getattr(second, field.name)
        if before == now:
            continue
        if field.name == "counters":
            lines += [f"{name}: {one}, then {other}" for name, one, other in counters(first, second)]
        elif field.name == "packets":
            pairs = itertools.zip_longest(before, now)
            number, one, other = next((at, *pair) for at, pair in enumerate(pairs, 1) if pair[0] != pair[1])
            lines.append(f"packets: {len(before)}, then {len(now)}; #{number} is {_packet(one)}, then {_packet(other)}")
        elif field.name != "digests":
            lines.append(f"{field.name}: {_short(before)}, then {_short(now)}")
    return lines or (["what it wrote differs behind its beginning"] if first != second else [])


def counters(first: CellOutcome, second: CellOutcome) -> list[tuple[str, int, int]]:
    """Return the counters that differ, with both values."""
    names = sorted(first.counters | second.counters)
    both = ((name, first.counters.get(name, 0), second.counters.get(name, 0)) for name in names)
    return [(name, before, now) for name, before, now in both if before != now]


def _packet(seen: Seen | None) -> str:
    """Return a packet in words: when it came, and what its bytes were."""
    return f"at {seen.at_s * 1e3:.6f} ms {seen.summary} ({seen.packet.data.hex()})" if seen else "missing"


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    first = next(iter(text.splitlines()), "")
    return repr(text) if len(text) < 80 else f"{first[:60]!r}..."
