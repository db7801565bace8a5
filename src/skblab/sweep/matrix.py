"""A matrix: scenarios on kernels, under seeds, several times each; what of that was not as expected."""

from collections import defaultdict
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from skblab.errors import UsageError, check_lists
from skblab.guest.diagnosis import too_little_memory
from skblab.image.image import Image
from skblab.image.store import find_image
from skblab.spec import LabSpec
from skblab.sweep.cell import CellOutcome, Scenario
from skblab.sweep.judge import differences, unmet
from skblab.sweep.pool import Job, Local, Pool

ENOUGH_MIB = 256  # for every image


@dataclass(frozen=True)
class Case:
    """A scenario on a kernel: what is run under each seed.

    :param scenario: with the kernel's image
    :param kernel: series and variant
    """

    scenario: Scenario
    kernel: str

    @property
    def name(self) -> str:
        """The scenario's name, or its command."""
        return self.scenario.name or " ".join(self.scenario.client)

    def under(self, seed: int) -> Scenario:
        """Return the scenario under a seed."""
        return replace(self.scenario, spec=replace(self.scenario.spec, seed=seed))


@dataclass(frozen=True)
class Run:
    """One run of a case.

    :param unmet: what was not as expected, a line each
    """

    seed: int
    repeat: int
    outcome: CellOutcome
    unmet: tuple[str, ...]


@dataclass
class Matrix:
    """Runs of scenarios; a file has them, or Python.

    ::

        matrix = Matrix(read(Path("scenario.toml")), series=("6.1", "6.12"), seeds=range(5))
        for case, run in matrix.run():
            print(case.name, case.kernel, run.seed, run.unmet)

    In a program of its own, that stands under ``if __name__ == "__main__":``, because the runs are in other processes.

    :param series: of the kernels; default: each scenario's
    :param variants: of the kernels; default: each scenario's
    :param seeds: default: each scenario's
    :param repeats: how often each runs under each seed

    :raises UsageError: there is nothing to run, or two are the same
    :raises ImageMissing: a kernel has not been built
    """

    scenarios: Sequence[Scenario]
    series: Sequence[str] = ()
    variants: Sequence[str] = ()
    seeds: Sequence[int] = ()
    repeats: int = 1
    cases: list[Case] = field(init=False)
    runs: dict[Case, list[Run]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        check_lists(series=self.series, variants=self.variants)
        if not self.scenarios or self.repeats < 1:
            raise UsageError("there is nothing to run", hint="a scenario, and --repeat 1")
        for what in (self.series, self.variants, self.seeds):
            if twice := [one for one in what if what.count(one) > 1]:
                raise UsageError(f"named twice: {twice[0]}", hint="each once; --repeat runs all again")
        self.cases = [case for scenario in self.scenarios for case in self._cases(scenario)]
        if twice := [one.name for one in self.cases if self.cases.count(one) > 1]:
            raise UsageError(f"two scenarios are the same: {twice[0]}", hint="a name for each")
        self.runs = {case: [] for case in self.cases}

    def _cases(self, scenario: Scenario) -> list[Case]:
        spec = scenario.spec
        if spec.image_path and not (self.series or self.variants):
            images = [Image.open(spec.image_path)]
        elif spec.image_path:
            raise UsageError(f"{scenario.name}: it names its image", hint="without image, or without --series")
        else:
            images = [
                find_image(series, variant)
                for series in self.series or (spec.series,)
                for variant in self.variants or (spec.variant,)
            ]
        return [
            Case(replace(scenario, spec=_on(spec, image)), kernel_name(image.series, image.variant)) for image in images
        ]

    @property
    def count(self) -> int:
        """How many runs there are."""
        return len(self.cases) * (len(self.seeds) or 1) * self.repeats

    @property
    def done(self) -> int:
        """How many runs are done."""
        return sum(map(len, self.runs.values()))

    def run(self, pool: Pool | None = None) -> Generator[tuple[Case, Run], None, None]:
        """Run all; yield each run when it is done. Every case runs once before one runs a second time."""
        jobs: dict[Job, tuple[Case, int]] = {}
        for repeat in range(self.repeats):
            for case in self.cases:
                for seed in self.seeds or (case.scenario.spec.seed,):
                    jobs[Job(case.under(seed), (), repeat)] = case, seed
        kept: dict[tuple[Case, int], list[CellOutcome]] = defaultdict(list)
        for job, outcome in (pool or Local())(jobs):
            case, seed = jobs[job]
            same = kept[case, seed]  # mostly each is the same: one of them is kept
            if outcome not in same:
                same.append(outcome)
            one = same[same.index(outcome)]
            run = Run(seed, job.repeat, one, tuple(unmet(case.scenario.expected, one)))
            self.runs[case].append(run)
            yield case, run

    def in_order(self, case: Case) -> list[Run]:
        """Return a case's runs that are done, by seed."""
        return sorted(self.runs[case], key=lambda run: (run.seed, run.repeat))

    def failed(self, case: Case) -> list[Run]:
        """Return a case's runs that were not as expected, by seed."""
        return [run for run in self.in_order(case) if run.unmet]

    def is_bad(self, case: Case) -> bool:
        """Whether a run of a case has failed."""
        return any(run.unmet for run in self.runs[case])

    @property
    def bad(self) -> list[Case]:
        """The cases of which a run failed."""
        return list(filter(self.is_bad, self.cases))

    def words(self, case: Case) -> str:
        """Say what became of a case: ``passed 10``, ``failed 10``, ``flaky, 3 of 10 failed (30 %)``."""
        runs, failed = len(self.runs[case]), sum(bool(run.unmet) for run in self.runs[case])
        if not runs:
            return "not run"
        if 0 < failed < runs:
            return f"flaky, {failed} of {runs} failed ({100 * failed / runs:.3g} %)"
        return f"failed {runs}" if failed else f"passed {runs}"

    def unlike(self, case: Case) -> list[tuple[int, list[str]]]:
        """Return the seeds under which two runs differ, and how: in virtual time they should not."""
        found: dict[int, list[str]] = {}
        first: dict[int, CellOutcome] = {}
        for run in self.in_order(case):
            before = first.setdefault(run.seed, run.outcome)
            if run.seed not in found and run.outcome is not before and run.outcome != before:
                found[run.seed] = differences(before, run.outcome)
        return list(found.items())


def _on(spec: LabSpec, image: Image) -> LabSpec:
    """Return a description with an image, and with the memory that a kernel with KASAN needs."""
    lacks = too_little_memory(spec.memory_mib, image.config_text)
    return replace(spec, image=image.path, memory_mib=ENOUGH_MIB if lacks else spec.memory_mib)


def kernel_name(series: str, variant: str) -> str:
    """Return a kernel in words: ``6.12``, ``6.12 kasan``."""
    return series if variant == "default" else f"{series} {variant}"
