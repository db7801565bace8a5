"""Several faults at once, at random from a seed; where a program does not cope, the fewest that it does not cope with.

Hypothesis generates the sets of faults and shrinks the one that was found.
"""

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from skblab.errors import MissingPrerequisite
from skblab.sweep import plan, stem
from skblab.sweep.cell import CellOutcome, run_cell
from skblab.sweep.judge import judge
from skblab.sweep.sweep import Done, Sweep

if TYPE_CHECKING:
    from skblab.sweep.plan import Faults

MOST_FAULTS = 6  # at once


def explore(
    sweep: Sweep, runs: int, seed: int, note: Callable[[Done], object] = lambda _: None
) -> tuple[Done | None, int]:
    """Try sets of faults until one is bad; return the smallest such set that was found, and the number of cells run.

    Where the scenario is traced, half of the sets are neighbours of those with which packets entered most functions
    that they do not enter without a fault.

    :param sweep: one that has begun: its baseline, and its packets
    :param runs: how many sets to try before one is bad; shrinking takes more
    :param note: called for each cell
    :raises MissingPrerequisite: Hypothesis is not installed
    """
    try:
        from hypothesis import HealthCheck, Phase, find, settings, strategies, target  # noqa: PLC0415 - an extra
        from hypothesis.errors import NoSuchExample  # noqa: PLC0415
    except ImportError:
        raise MissingPrerequisite("hypothesis is not installed", hint="pip install 'skblab[test]'") from None
    single = [fault for (fault,) in plan.singles(sweep.baseline, sweep.verdicts, sweep.scenario)]
    done: dict[Faults, Done] = {}

    def outcome(chosen: Sequence[plan.Fault]) -> Done:
        faults = tuple(sorted(chosen, key=lambda fault: fault.row))
        if faults not in done:
            result = run_cell(sweep.scenario, plan.rules(faults))
            done[faults] = Done(faults, result, judge(sweep.baseline, result, sweep.scenario))
            note(done[faults])
        return done[faults]

    def is_bad(chosen: Sequence[plan.Fault]) -> bool:
        one = outcome(chosen)
        if sweep.scenario.traced:
            target(float(len(new_functions(sweep, one.outcome))))
        return one.judgement.is_bad

    sets = strategies.lists(
        strategies.sampled_from(single), min_size=1, max_size=MOST_FAULTS, unique_by=lambda fault: fault.row
    )
    how = settings(
        max_examples=runs, database=None, deadline=None, phases=(Phase.generate, Phase.target, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    with stem.kept():
        try:
            least = find(sets, is_bad, settings=how, random=random.Random(seed))  # noqa: S311
        except NoSuchExample:
            return None, len(done)
        for fault in tuple(least):  # Hypothesis leaves one in where it has not tried without it
            fewer = [one for one in least if one != fault]
            if fewer and outcome(fewer).judgement.is_bad:
                least = fewer
        return outcome(least), len(done)


def new_functions(sweep: Sweep, outcome: CellOutcome) -> set[str]:
    """Return the kernel's functions that packets enter with a set of faults, and not without."""
    return {*outcome.functions} - {*sweep.baseline.functions}
