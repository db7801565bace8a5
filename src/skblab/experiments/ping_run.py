"""The ping experiment without a person: a list of hold times."""

from collections.abc import Callable
from dataclasses import dataclass

from skblab.errors import UsageError
from skblab.experiments.ping import ECHO_REQUEST, FOREVER_S, PingExperiment, Result, Staircase, Stop
from skblab.image.missing import find_function
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.saved import SavedRun
from skblab.spec import LabSpec

LONGER_S = 0.1
NOTE = "The pings of skblab ping as one command; a rule holds each that was held, while the kernel runs on."


@dataclass(frozen=True)
class Plan:
    """What to do: ``count`` plain pings, one held ping for each of ``holds_s``, a staircase for ``staircase_s``."""

    function: str
    holds_s: tuple[float, ...]
    count: int
    interval_s: float
    staircase_s: float | None

    def as_run(self, spec: LabSpec) -> SavedRun:
        """Return it as one ping command with a rule for each hold, which can be saved.

        :raises UsageError: it has a staircase
        """
        if self.staircase_s:
            raise UsageError("the staircase is a queue of this machine's: no rule makes one", hint="without --save")
        rules = [
            Rule(
                self.function, "delay", filter=f"{ECHO_REQUEST} and icmp[6:2] == {number}", delay_ns=round(hold_s * 1e9)
            )
            for number, hold_s in enumerate(self.holds_s, self.count + 1)
        ]
        # ping waits for its last reply as long as for its next interval (iputils ping_common.c schedule_exit()).
        pause_s = max(self.interval_s, *(hold_s + LONGER_S for hold_s in (0, *self.holds_s)))
        words = ["-n", "-c", self.count + len(self.holds_s), "-i", f"{pause_s:g}", "-W", FOREVER_S, "guest"]
        return SavedRun(spec=spec, client=("ping", *map(str, words)), rules=tuple(map(str, rules)), note=NOTE)


def run(lab: Lab, plan: Plan, progress: Callable[[str], None] = lambda _: None) -> Result:
    """Run a plan on a running lab.

    :raises UnknownFunction: there is no such function to stop at
    :raises DebuggerError: gdb cannot attach, or is gone
    :raises GuestLost: the guest kernel ended
    """
    find_function(lab.image, plan.function)
    if not lab.namespaces.addresses.guest:
        raise UsageError(
            f"lab {lab.name} has no host side of its own, where ping could run", hint="without --link on=LAB"
        )
    if lab.guest.clock.is_virtual and plan.staircase_s:
        raise UsageError("the staircase is a queue of this machine's, in real time", hint="without --time virtual")
    experiment = PingExperiment(lab, plan.function)
    progress(f"{plan.count} plain pings")
    baseline = experiment.baseline(plan.count, plan.interval_s)
    stops: list[Stop] = []
    staircase: Staircase | None = None
    if lab.guest.clock.is_virtual:
        stops = [experiment.hold_ping(hold_s) for hold_s in plan.holds_s]
    elif plan.holds_s or plan.staircase_s:
        progress("attaching gdb")
        with lab.debugger() as debugger:
            experiment.attach(debugger)
            for hold_s in plan.holds_s:
                progress(f"waiting for a ping in {plan.function}()")
                ping = experiment.stop_ping()
                progress(f"the kernel is stopped in {plan.function}() for {hold_s:g} s")
                experiment.stay_stopped(ping, hold_s)
                stops.append(experiment.outcome(ping, experiment.resume(ping)))
            if plan.staircase_s:
                progress(f"pings pile up for {plan.staircase_s:g} s")
                staircase = experiment.staircase(plan.staircase_s, plan.interval_s)
    return Result(
        kernel=lab.image.release,
        function=plan.function,
        baseline_ms=baseline,
        stops=tuple(stops),
        staircase=staircase,
        lost=experiment.lost,
    )
