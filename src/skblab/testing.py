"""A lab in a test: what came of its rules, counters and trace since the test began, and what a failure shows."""

import contextlib
import dataclasses
import difflib
import functools
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

from skblab.agent.running import Running
from skblab.agent.streams import Hold
from skblab.branch import CannotBranch
from skblab.errors import CallbackFailed, GuestLost, SkblabError, TraceError, UsageError, check_lists
from skblab.guest.complaint import in_words
from skblab.guest.nodes import HOST, OWN
from skblab.image.reasons import PREFIX
from skblab.lab import InForce, Lab
from skblab.policy import Policy
from skblab.session import RuleOutcome
from skblab.snmp import counters
from skblab.spec import LabSpec
from skblab.trace.journey import Journey, is_readable, journeys
from skblab.trace.words import reason_in_words
from skblab.view.rtts import Rtts

if TYPE_CHECKING:
    from pathlib import Path

    import pytest

    from skblab.agent.streams import Probe
    from skblab.image.image import Image
    from skblab.trace.model import Step, Trace
    from skblab.trace.tracer import Tracer

SPEC_FIELDS = frozenset(field.name for field in dataclasses.fields(LabSpec))
COUNTER_FILES = ("/proc/net/snmp", "/proc/net/netstat", "/proc/net/snmp6")
SWITCHES = {
    **dict.fromkeys(("allow_unfired", "allow_unedited", "allow_undecided", "allow_complaints"), False),
    "counters": True,
}
MOST_STEMS = 4  # each has a guest's memory
SHOWN_JOURNEYS, SHOWN_LINES = 20, 200
PING_INTERVAL_S, PING_TIMEOUT_S = 0.05, 30


@dataclass(frozen=True)
class Settings:
    """What the markers ``skblab`` of a test say.

    :param spec: the lab's description, but for the image where no marker names one
    :param named: the fields that are named
    :param trace: a pcap-filter(7) expression of what to trace, "" for everything, None for nothing
    :param counters: whether the guest's counters are read as the test begins
    """

    spec: LabSpec
    named: frozenset[str]
    trace: str | None = None
    allow_unfired: bool = False
    allow_unedited: bool = False
    allow_undecided: bool = False
    allow_complaints: bool = False
    counters: bool = True

    def spec_with(self, image: "Image | None") -> LabSpec:
        """Return the description with an image, if there is one."""
        return self.spec if image is None else dataclasses.replace(self.spec, image=image)


def settings(node: "pytest.Item") -> Settings:
    """Return what a test's markers say; the one nearest to the test wins.

    :raises UsageError: there is no such field, or it is out of its range
    """
    said: dict[str, Any] = {}
    for marker in _nearest_last(node):
        if marker.args:
            raise UsageError("the marker skblab takes keywords", hint='@pytest.mark.skblab(root="host")')
        said |= marker.kwargs
    serve, trace = said.pop("serve", ()), said.pop("trace", False)
    switches = {name: said.pop(name, usual) for name, usual in SWITCHES.items()}
    for name, value in switches.items():
        if not isinstance(value, bool):
            raise UsageError(f"{name} is True or False, not {value!r}")
    if not isinstance(trace, bool | str | None):
        raise UsageError(f"no filter: trace={trace!r}", hint='trace="icmp"; True: every packet')
    if not isinstance(serve, str | list | tuple):
        raise UsageError(f"no command: serve={serve!r}", hint='serve="python3 -m http.server 80"; or a list')
    check_lists(commands=said.get("commands", ()))
    if unknown := sorted(said.keys() - SPEC_FIELDS):
        raise UsageError(
            f"the marker skblab knows no {unknown[0]}",
            found=f"fields: {', '.join(sorted(SPEC_FIELDS | SWITCHES.keys() | {'serve', 'trace'}))}",
        )
    if serve:
        said["commands"] = (*said.get("commands", ()), *([serve] if isinstance(serve, str) else serve))
    traced = "" if trace is True else None if trace is False else trace
    return Settings(LabSpec(**said), frozenset(said), traced, **switches)


def _nearest_last(node: "pytest.Item") -> "list[pytest.Mark]":
    """Return a test's markers. pytest has those of a case (``pytest.param(..., marks=)``) behind the function's."""
    of_case = [one for one in getattr(getattr(node, "callspec", None), "marks", ()) if one.name == "skblab"]
    others = [one for one in node.iter_markers("skblab") if not any(one is mark for mark in of_case)]
    return [*reversed(others), *of_case]


class Counters(Mapping[str, int]):
    """A node's counters of the kernel, as nstat(8) names them, since the test began: ``TcpRetransSegs``."""

    def __init__(self, read: Callable[[], dict[str, int]]) -> None:
        self._read = read
        self._before = read()

    def _now(self) -> dict[str, int]:
        return {name: value - self._before.get(name, 0) for name, value in self._read().items()}

    def __getitem__(self, name: str) -> int:
        return self._now()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._before)

    def __len__(self) -> int:
        return len(self._before)

    def changed(self) -> dict[str, int]:
        """Return those that have changed."""
        return {name: value for name, value in self._now().items() if value}


def parse_counters(text: str) -> dict[str, int]:
    """Return the counters of /proc/net/snmp, netstat and snmp6 by nstat's names."""
    return {group + name: value for group, name, value in counters(text)}


class LabInTest(Lab):
    """A lab of a test. It knows the rules that the test has put in force, and what happened since the test began."""

    def __init__(self, spec: LabSpec) -> None:
        super().__init__(spec=spec)
        self.directory_of: Callable[[], Path] | None = None
        self._in_force: list[Running | Hold | Probe | Policy] = []
        self._at_close: list[RuleOutcome] = []  # if the test itself closes it
        self._undone: list[Callable[[], Sequence[str]]] = []
        self._counters: dict[str, Counters] = {}  # by node
        self._tracer: Tracer | None = None
        self._settings = Settings(spec, frozenset())
        self._complaints_seen = 0
        self._branches: list[LabInTest] = []
        self.is_of_test = False  # a branch that the test has made

    def begin_test(self, wanted: Settings, trace: str | None) -> None:
        """Begin a test: counters and trace begin here."""
        self._settings, self._in_force, self._at_close, self._undone, self._branches = wanted, [], [], [], []
        self.__dict__.pop("traced", None)
        nodes = (OWN, HOST, *self.spec.nodes) if wanted.counters else ()
        self._counters = {node: Counters(functools.partial(self._read_counters, node)) for node in nodes}
        self._tracer = None
        if trace is not None:
            self._tracer = super().trace(filter=trace, about={"command": ["pytest"]})
            self._tracer.__enter__()

    def _another(self) -> "LabInTest":
        lab = LabInTest(self.spec)
        lab.name, lab._settings = self.name, self._settings
        return lab

    def branch(self) -> "LabInTest":
        """Return a branch, as ``Lab.branch()``. What is wrong in it is wrong in this test; it counts from its begin."""
        lab = super().branch()
        lab.is_of_test = True
        self._branches.append(lab)
        return lab

    def __enter__(self) -> Self:
        lab = super().__enter__()
        if self.is_of_test:
            self.begin_test(self._settings, None)
        return lab

    def _begun(self, one: InForce) -> InForce:
        """Note what was put in force: it ends with the test; a rule, a hold or a policy that never fires fails that."""
        self._in_force.append(one)
        return one

    def ask_at_end(self, undone: Callable[[], Sequence[str]]) -> None:
        """Ask then what was not done, in words; the test fails where it is anything."""
        self._undone.append(undone)

    @property
    def _outcomes(self) -> "list[Running | Hold | Policy]":
        """What the test put in force to do something to packets; a probe may well see none."""
        return [one for one in self._in_force if isinstance(one, Running | Hold | Policy)]

    @property
    def counters(self) -> Counters:
        """The guest's counters since the test began; those of a kernel are counted in each network namespace."""
        return self.counters_of(OWN)

    def counters_of(self, node: str) -> Counters:
        """Return a node's counters since the test began: of ``"host"``, where the clients are, or one of the spec's.

        :raises UsageError: there is no such node, or the test has ``counters=False``
        """
        if node not in self._counters:
            if not self._settings.counters:
                raise UsageError("counters are not read in this test", hint="without counters=False")
            raise UsageError(f"no node is called {node}", found=f"nodes: {', '.join(self._counters)}")
        return self._counters[node]

    def _read_counters(self, node: str) -> dict[str, int]:
        if node == HOST and not self.guest.clock.is_virtual:
            return parse_counters(self.run(["cat", *COUNTER_FILES], timeout_s=PING_TIMEOUT_S).stdout)
        where = "" if node == OWN else node
        return parse_counters(self.guest.read(*COUNTER_FILES, node=where, timeout_s=PING_TIMEOUT_S).decode())

    @functools.cached_property
    def traced(self) -> "Trace":
        """The trace since the test began. It ends here: packets that come later are not in it.

        :raises UsageError: nothing is traced in this test
        """
        if self._tracer is None:
            raise UsageError("nothing is traced in this test", hint="@pytest.mark.skblab(trace=True)")
        return self._tracer.trace()

    def journeys(self) -> list[Journey]:
        """Return the journeys of network packets in ``traced``.

        :raises UsageError: nothing is traced
        :raises TraceError: the trace has lost steps
        """
        self._check_whole()
        return self._journeys()

    def _journeys(self) -> list[Journey]:
        return [one for one in journeys(self.traced) if one.is_of_network]

    def visited(self, function: str) -> "list[Step]":
        """Return the steps in which a packet entered a kernel function; an empty list is false.

        One that a rule holds or drops there has entered it, once.

        :raises UsageError: the trace does not follow that function, or nothing is traced
        :raises TraceError: the trace has lost steps
        """
        self._check_whole()
        assert self._tracer
        followed = {one.function.name for one in self._tracer.probes if one.command.step}
        if function not in followed.difference(self._tracer.refused):
            raise UsageError(f"no trace follows {function}()", hint=f"skblab probes {function}")
        return list(_entered(self.traced, function))

    def dropped(self, reason: str = "") -> "list[Step]":
        """Return the steps that dropped a network packet for a drop reason of the kernel's (``NO_SOCKET``), or for any.

        Netlink messages, and those of local sockets, are freed with drop reasons, too, in runs that lose nothing.

        :raises UsageError: nothing is traced, or the kernel has no such reason
        :raises TraceError: the trace has lost steps
        """
        self._check_whole()
        known = {*self.traced.about["reasons"].values()}
        wanted = reason.upper().removeprefix(PREFIX)
        if wanted and wanted not in known:
            near = difflib.get_close_matches(wanted, known)
            raise UsageError(
                f"Linux {self.image.release} has no drop reason {reason}",
                found=f"near: {', '.join(near)}" if near else "",
            )
        of_network = {step.packet for step in self.traced.steps if is_readable(step)}
        ours = (step for step in self.traced.steps if step.packet in of_network)
        said = ((step, reason_in_words(self.traced, step)) for step in ours)
        return [step for step, why in said if why and (not wanted or why == wanted)]

    def _check_whole(self) -> None:
        """Refuse to say what was not visited where steps are missing."""
        end = self.traced.end
        if lost := end["lost"] + end["forgotten"]:
            raise TraceError(
                f"the trace has lost {lost} steps or packets, so it cannot say what was not there",
                hint="trace=FILTER follows fewer packets; steps_bytes=1 << 28 has more room",
            )

    def rtts_ms(self, count: int = 1) -> Rtts:
        """Ping the guest; return the RTT of each reply, in ms."""
        words = ["ping", "-n", "-c", str(count), "-i", str(PING_INTERVAL_S), "-W", "5", "guest"]
        return Rtts.of_ping(self.run(words, timeout_s=PING_TIMEOUT_S).stdout)

    @property
    def is_alive(self) -> bool:
        """Whether its guest's kernel runs."""
        try:
            self.check()
        except SkblabError:
            return False
        return True

    def wrong(self) -> list[str]:
        """Return what makes a test worthless that has passed otherwise, in words; of its branches, too."""
        return self._wrong_here() + [words for branch in self._branches for words in branch.wrong()]

    def _wrong_here(self) -> list[str]:
        try:
            self.check()
        except GuestLost as error:
            return [str(error)]
        except UsageError:  # the test itself has closed it
            outcomes = self._at_close
        else:
            outcomes = [*map(_outcome_of, self._outcomes)]
        undone = [] if self._settings.allow_undecided else [one for undone in self._undone for one in undone()]
        return [
            *self._wrong_callbacks(),
            *self._wrong_rules(outcomes),
            *(f"not carried out: {one}" for one in undone),
            *self.new_complaints_in_words(),
        ]

    def _wrong_callbacks(self) -> Iterator[str]:
        """Yield what callbacks have raised and no close() has, and what was decided too late."""
        for one in self._outcomes:
            if isinstance(one, Policy):
                policy = f"the policy at {one.rule.function}()"
                if one.error:
                    yield str(CallbackFailed(policy, one.error))
                if one.late:
                    yield f"{policy} decided too late about {one.late} packets, which went on as they were"
            elif isinstance(one, Running) and one.error:
                yield str(CallbackFailed(str(one.armed.rule), one.error))

    def _wrong_rules(self, outcomes: Iterable[RuleOutcome]) -> list[str]:
        wrong = []
        for one in outcomes:
            if one.unedited:
                if not self._settings.allow_unedited:
                    wrong.append(f"{one.rule}: {one.unedited} unedited; {one.why_unedited}")
            elif not one.fired and not self._settings.allow_unfired:
                wrong.append(f"{one.rule}: never fired, so this test has not tested what the rule is for")
            if one.unheard:
                wrong.append(f"{one.rule}: {one.unheard} of its hits were not reported: the ring of events was full")
        return wrong

    def close(self) -> None:
        """End the lab, as ``Lab.close()``; its rules are judged as they are now."""
        if self._stack is not None:
            self._at_close = [_outcome_of(one) for one in self._outcomes]
        super().close()

    def new_complaints_in_words(self) -> list[str]:
        """Return the complaints of the guest's kernel that were not returned before, if the test allows none."""
        new = self.complaints[self._complaints_seen :]
        self._complaints_seen += len(new)
        return [in_words(new)] if new and not self._settings.allow_complaints else []

    def end_test(self) -> None:
        """End what a test of a shared lab has left in force, and its trace."""
        left, self._in_force = self._in_force, []
        with contextlib.ExitStack() as stack:  # each ends, also behind one that raises what its callback has raised
            for end in (*([self._tracer.end] if self._tracer else []), *(one.close for one in reversed(left))):
                stack.callback(self._while_alive, end)

    def _while_alive(self, end: Callable[[], None]) -> None:
        if self.is_alive:
            end()

    def evidence(self) -> Iterator[tuple[str, str]]:
        """Yield what a failure shows, each with its title; where the lab cannot say it, why not."""
        if self._stack is None:  # the test itself has closed it
            return
        for title, lines in self._evidence():
            try:
                text = "\n".join(lines())
            except Exception as error:  # noqa: BLE001 - pytest would lose the report, and so the failure
                text = f"cannot be read: {error}"
            if text:
                yield title, text

    def _evidence(self) -> Iterator[tuple[str, Callable[[], Iterable[str]]]]:
        yield "rules", lambda: ("\n  ".join(_outcome_of(one).lines()) for one in self._outcomes)
        yield "complaints", self.new_complaints_in_words
        for node, counted in self._counters.items() if self.is_alive else ():
            yield f"counters of {node}", functools.partial(_counter_lines, counted)
        yield "panic", lambda: [str(panic)] if (panic := self.guest.panic()) else []
        yield "console of the guest", lambda: [self.console.evidence()]
        if self._tracer:
            yield "trace", self._trace_lines

    def _trace_lines(self) -> Iterator[str]:
        from skblab.view.page import write_page  # noqa: PLC0415 - only where a test has failed
        from skblab.view.pcapng import write_pcapng  # noqa: PLC0415
        from skblab.view.tree import lines  # noqa: PLC0415

        try:
            found = self._journeys()
        except SkblabError as error:
            yield str(error)
            return
        shown = [line.plain for journey in found[:SHOWN_JOURNEYS] for line in lines(self.traced, journey)]
        yield from shown[:SHOWN_LINES]
        if len(found) > SHOWN_JOURNEYS or len(shown) > SHOWN_LINES:
            yield f"... {len(found)} journeys: the files have all of them"
        if found and self.directory_of:
            directory = self.directory_of()
            write_pcapng(self.traced, directory / "trace.pcapng")
            write_page(self.traced, directory / "trace.html")
            yield f"for Wireshark: {directory / 'trace.pcapng'}"
            yield f"as a page:     {directory / 'trace.html'}"


class Stems:
    """Labs of which the labs of tests are branches: booted once for all tests that want the same."""

    def __init__(self) -> None:
        self._stems: OrderedDict[LabSpec, LabInTest] = OrderedDict()

    def lab(self, spec: LabSpec) -> LabInTest:
        """Return a lab for a test, which has been entered: in virtual time a branch, where there can be one.

        :raises SkblabError: it cannot be booted
        """
        if spec.time != "virtual" or spec.disks or spec.consoles:
            return LabInTest(spec).__enter__()
        stem = self._stems.pop(spec, None)
        try:
            return self._branch(spec, stem or self._grown(spec))
        except SkblabError as error:  # it is gone, or cannot branch
            if not stem and not isinstance(error, CannotBranch):
                raise
            return LabInTest(spec).__enter__()

    def _branch(self, spec: LabSpec, stem: LabInTest) -> LabInTest:
        try:
            lab = Lab.branch(stem).__enter__()
        except BaseException:
            stem.close()
            raise
        self._stems[spec] = stem
        return lab

    def _grown(self, spec: LabSpec) -> LabInTest:
        while len(self._stems) >= MOST_STEMS:
            self._stems.popitem(last=False)[1].close()
        return LabInTest(spec).__enter__()

    def close(self) -> None:
        """End them."""
        for stem in self._stems.values():
            stem.close()
        self._stems.clear()


def _entered(trace: "Trace", function: str) -> "Iterator[Step]":
    """Yield the steps in which a packet entered a function; one that was held there has a second one, as it goes on."""
    held = set()
    for step in trace.steps:
        if step.function.name != function:
            continue
        if not step.resumed:
            held.add((step.packet, step.skb))
        elif (step.packet, step.skb) in held:
            continue
        yield step


def _counter_lines(counted: Counters) -> Iterator[str]:
    return (f"{name:28} {value}" for name, value in counted.changed().items())


def _outcome_of(one: "Running | Hold | Policy") -> RuleOutcome:
    return RuleOutcome(one.rule, one.counts, one.fired) if isinstance(one, Policy) else RuleOutcome.of(one)
