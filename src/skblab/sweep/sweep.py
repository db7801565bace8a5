"""A sweep: a scenario without a fault, twice; then each fault of its conversation, and what each one changed."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

from skblab.errors import UNFIRED, SkblabError
from skblab.sweep import plan
from skblab.sweep.cell import CellOutcome, Scenario, run_cell
from skblab.sweep.expect import Expected
from skblab.sweep.judge import Judgement, differences, judge
from skblab.sweep.plan import Faults, Target
from skblab.sweep.pool import Job, Local, Pool
from skblab.sweep.store import Store

MOST_DIFFERENCES = 12


class NotRepeatable(SkblabError):
    """Two runs without a fault differ: nothing can be said of a fault."""


class NothingToTest(SkblabError):
    """There is no cell."""

    exit_status = UNFIRED


@dataclass(frozen=True)
class Done:
    """A cell that is done."""

    faults: Faults
    outcome: CellOutcome
    judgement: Judgement

    @property
    def rules(self) -> tuple[str, ...]:
        """Its rules."""
        return plan.rules(self.faults)

    @property
    def name(self) -> str:
        """Its faults: ``#7 drop``, or ``#7 drop, #9 duplicate``."""
        return ", ".join(f"#{fault.row} {fault.verdict}" for fault in self.faults)


@dataclass
class Sweep:
    """The cells of a scenario: planned by ``begin()``, run by ``run()``.

    ::

        sweep = Sweep(Scenario(spec=LabSpec(time="virtual", commands=["./server"]), client=("./client",)))
        sweep.begin()
        for done in sweep.run():
            print(done.rules, done.judgement.words)

    In a program of its own, that stands under ``if __name__ == "__main__":``, because the cells run in other processes.
    """

    scenario: Scenario
    verdicts: Sequence[str] = plan.VERDICTS
    pairs: int = 0
    baseline: CellOutcome = field(init=False, default_factory=CellOutcome)
    targets: list[Target] = field(init=False, default_factory=list)
    cells: list[Faults] = field(init=False, default_factory=list)
    done: dict[Faults, Done] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        plan.check(self.verdicts)

    def begin(self, pool: Pool | None = None) -> None:
        """Run the scenario twice without a fault, and plan the cells.

        :raises NotRepeatable: the two runs differ
        :raises NothingToTest: no fault has a meaning for any of the packets
        :raises SkblabError: it fails without a fault, or no packet enters its functions
        """
        if pool is None:
            first, second = run_cell(self.scenario), run_cell(self.scenario)
        else:
            first, second = (next(pool([Job(self.scenario)]))[1] for _ in range(2))
        if first != second:
            raise NotRepeatable(
                "two runs without a fault differ, so nothing can be said of a fault",
                found="\n".join(differences(first, second)[:MOST_DIFFERENCES]),
                hint="does the client or a server read what changes: this machine's files, the order of a directory?",
            )
        self._check(first)
        self.baseline, self.targets = first, plan.targets(first)
        alone = list(plan.singles(first, self.verdicts, self.scenario))
        if not alone:
            raise NothingToTest(
                "no fault has a meaning for any packet, so nothing would be tested",
                found=f"{', '.join(self.verdicts)}: of {len(first.packets)} packets",
                hint="reorder needs a packet behind, corrupt a payload, edit and reset the fields that they change",
            )
        self.cells = alone + plan.pairs(alone, self.pairs, self.scenario.spec.seed)

    def _check(self, baseline: CellOutcome) -> None:
        if baseline.end != "ended" or baseline.status:
            what = f"status {baseline.status}" if baseline.end == "ended" else f"{baseline.end}: {baseline.why}"
            raise SkblabError(
                f"the command fails without a fault ({what})",
                found="\n".join((baseline.stdout + baseline.stderr).splitlines()[-MOST_DIFFERENCES:]),
                hint=f"try it alone: {self.scenario.command(())}",
            )
        if not baseline.packets:
            where = ", ".join(self.scenario.at)
            filtered = f" that {self.scenario.filter!r} takes" if self.scenario.filter else ""
            where += f" inside {self.scenario.inside}" if self.scenario.inside else ""
            raise SkblabError(
                f"no packet{filtered} enters {where}", hint="--at FUNCTION; skblab trace shows where they go"
            )

    def run(self, pool: Pool | None = None, *, resume: bool = False) -> Generator[Done, None, None]:
        """Run the cells; yield each one when it is done. Those that an interrupted sweep has done come first.

        :param resume: go on with an interrupted sweep
        """
        faults = {plan.rules(cell): cell for cell in self.cells}
        store = Store(self.scenario, self.baseline, resume=resume)
        try:
            for rules in [rules for rules in faults if rules in store.done]:
                yield self._note(faults[rules], store.done[rules])
            left = [Job(self.scenario, rules) for rules in faults if rules not in store.done]
            for job, outcome in (pool or Local())(left):
                store.add(job.rules, outcome)
                yield self._note(faults[job.rules], outcome)
        finally:
            store.close(forget=self.is_complete)

    def _note(self, faults: Faults, outcome: CellOutcome) -> Done:
        done = self.done[faults] = Done(faults, outcome, judge(self.baseline, outcome, self.scenario))
        return done

    @property
    def is_complete(self) -> bool:
        """Whether every cell is done."""
        return len(self.done) == len(self.cells)

    @property
    def in_order(self) -> list[Done]:
        """The cells that are done, in the order of the plan."""
        return [self.done[faults] for faults in self.cells if faults in self.done]

    @property
    def bad(self) -> list[Done]:
        """The cells in which the program did not cope, or a fault that was alone did not meet its packet."""
        return [one for one in self.in_order if one.judgement.is_bad or self._is_missed(one)]

    def as_scenario(self, done: Done) -> Scenario:
        """Return the scenario with a cell's faults, which expects what came of it without a fault.

        Where the program does not cope with them, ``skblab matrix`` fails with it until the program is repaired.
        """
        baseline, judged = self.baseline, self.scenario.judged
        of_stdout, of_stderr = baseline.digests
        expected = Expected(
            status=baseline.status if "status" in judged else None,
            stdout_sha256=of_stdout if "stdout" in judged else "",
            stderr_sha256=of_stderr if "stderr" in judged else "",
            files=tuple((path, of_file) for path, of_file, _ in baseline.files) if "files" in judged else (),
            listening=baseline.listening,
            complaints=bool(baseline.complaints),
            fired=len(done.faults) == 1,
        )
        rules = (*done.rules, *self.scenario.rules)
        return replace(self.scenario, name=done.name, rules=rules, traced=False, expected=expected)

    @staticmethod
    def _is_missed(one: Done) -> bool:
        return len(one.faults) == 1 and one.judgement.kind == "unfired"
