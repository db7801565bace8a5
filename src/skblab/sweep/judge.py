"""What a fault changed: the outcome of a cell beside that of the run without a fault."""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields

from skblab.agent.running import NO_DIFFERENCE
from skblab.scenario import digest
from skblab.sweep.cell import MOST_KEPT, CellOutcome, Scenario, Seen
from skblab.sweep.expect import Expected

SLOWER_S = 0.001  # work takes no time: what takes longer has waited for a timer
KINDS = ("same", "slower", "faster", "unfired", "output", "failed", "hung", "complaint", "died", "lost")
BAD = frozenset(KINDS[KINDS.index("output") :])


@dataclass(frozen=True)
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
    if "files" in scenario.judged and outcome.files != baseline.files:
        return Judgement("output", "other files")
    if not {*baseline.listening} <= {*outcome.listening}:
        return Judgement("failed", "server gone")
    if not all(outcome.fired):
        return Judgement("unfired", _why_unfired(outcome))
    longer_s = outcome.duration_s - baseline.duration_s
    if abs(longer_s) > SLOWER_S:
        return Judgement("slower" if longer_s > 0 else "faster", f"{longer_s:+.3f} s")
    return Judgement("same", "same")


def _why_unfired(outcome: CellOutcome) -> str:
    if outcome.unedited:
        return "not edited"
    return "no difference" if any(one.verdict.endswith(NO_DIFFERENCE) for one in outcome.packets) else "no such packet"


def unmet(expected: Expected, outcome: CellOutcome) -> list[str]:
    """Return what an outcome lacks of what was expected, a line each."""
    lines = [] if expected.complaints else [f"the kernel complained: {one}" for one in outcome.complaints]
    if outcome.end != expected.end:
        return [f"{outcome.end}, not {expected.end}" + (f": {outcome.why}" if outcome.why else ""), *lines]
    if expected.fired:
        lines += [f"rule {at} never fired" for at, fired in enumerate(outcome.fired, 1) if not fired]
    lines += [f"unedited: {one}" for one in outcome.unedited]
    lines += list(_counted(expected, outcome))
    if outcome.end != "ended":
        return lines
    lines += [f"nobody listens there any more: {one}" for one in expected.listening if one not in outcome.listening]
    if expected.status is not None and outcome.status != expected.status:
        lines.append(f"status {outcome.status}, not {expected.status}")
    least_s, most_s = expected.duration_s
    if not least_s <= outcome.duration_s <= most_s:
        lines.append(f"{outcome.duration_s:.6f} s, not {_between(least_s, most_s)} s")
    return lines + list(_written(expected, outcome))


def _counted(expected: Expected, outcome: CellOutcome) -> Iterator[str]:
    for name, least, most in expected.counters:
        value = outcome.counters.get(name)
        if value is None:
            yield f"counter {name}: the kernel does not show it"
        elif not least <= value <= most:
            yield f"counter {name}: {value}, not {_between(least, most)}"


def _between(least: float, most: float) -> str:
    return f"{least:g}" if least == most else f"{least:g} to {most:g}"


def _written(expected: Expected, outcome: CellOutcome) -> Iterator[str]:
    """Yield how what the client wrote differs from what was expected."""
    digests = {path: (is_digest, text) for path, is_digest, text in outcome.files}
    digests |= {"stdout": (outcome.digests[0], outcome.stdout), "stderr": (outcome.digests[1], outcome.stderr)}
    wanted = [
        *(("stdout", one) for one in (expected.stdout_sha256, _digest_of(expected.stdout)) if one),
        *(("stderr", one) for one in (expected.stderr_sha256, _digest_of(expected.stderr)) if one),
        *expected.files,
    ]
    for name, digest_wanted in wanted:
        is_digest, text = digests.get(name, ("", ""))
        if is_digest != digest_wanted:
            yield f"{name} is {_short(text)}, not what was expected" if is_digest else f"{name} is not there"
    for name, parts, text in (
        ("stdout", expected.stdout_has, outcome.stdout),
        ("stderr", expected.stderr_has, outcome.stderr),
    ):
        where = f" in its first {MOST_KEPT} characters" if len(text) == MOST_KEPT else ""
        for part in parts:
            if part not in text:
                yield f"{name} lacks {_short(part)}{where}: {_short(text)}"


def _digest_of(text: str | None) -> str:
    return "" if text is None else digest(text)


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
