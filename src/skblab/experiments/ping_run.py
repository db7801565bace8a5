"""The ping experiment without a person: a list of hold times."""

from collections.abc import Callable
from dataclasses import dataclass

from skblab.errors import UsageError
from skblab.experiments.ping import PingExperiment, Result, Staircase, Stop
from skblab.image.missing import find_function
from skblab.lab import Lab


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do: ``count`` plain pings, one held ping for each of ``holds_s``, a staircase for ``staircase_s``."""

    function: str
    holds_s: tuple[float, ...]
    count: int
    interval_s: float
    staircase_s: float | None


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
