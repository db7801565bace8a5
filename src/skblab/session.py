"""Session: one run in a lab. Rules in force, gdb where one of them stops the kernel, a client, and what came of it."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from skblab.agent.abi import Counts
from skblab.agent.rules import ignore
from skblab.agent.streams import Hold
from skblab.decision import INTERRUPT, Deciding, Decision, by_hand, is_decided
from skblab.errors import DebuggerError, UsageError, check_lists, check_times
from skblab.event import Hit, Stop
from skblab.guest.boot import LAST_WORDS_S
from skblab.guest.complaint import Complaint
from skblab.guest.exec import Command
from skblab.guest.losses import Losses
from skblab.guest.mconsole import Kind
from skblab.host import process
from skblab.host.output import Kept
from skblab.host.signals import wakeup
from skblab.host.waiting import wait
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.rule import Rule
from skblab.verdict import RETURN, VERDICTS

if TYPE_CHECKING:
    import socket

    from skblab.agent.running import Running
    from skblab.debugger.session import Debugger

    Watched = Debugger | Deciding | socket.socket | int
TimeLeft = Callable[[], float | None]

ONE_RUN = "with Session(lab, rules) as session: session.run(command)"
STOP_TIMEOUT_S = 1.0  # gdb has said that there is one
LAST_STOP_S = 10.0  # from the command's end to gdb's report of a stop that the agent has counted


class Watcher:
    """Watches a run; override what is of interest. ``hit()`` is called from a thread of the session's."""

    def hit(self, hit: Hit) -> None:
        """Note that a packet met a rule."""

    def stopped(self, stop: Stop) -> None:
        """Note that the kernel is stopped; it is resumed when this returns."""

    def resumed(self, stopped_s: float) -> None:
        """Note that the kernel has been resumed; it was stopped for so long."""


@dataclass(frozen=True)
class RuleOutcome:
    """What became of the packets that a rule's filter took.

    :param fired: it gave its verdict at least once
    :param unedited: packets on which its edit failed
    :param why_unedited: why it failed on the first of them
    :param unheard: packets that its report has missed
    """

    rule: Rule
    counts: Counts
    fired: bool
    unedited: int = 0
    why_unedited: str = ""
    unheard: int = 0

    @classmethod
    def of(cls, running: "Running | Hold") -> Self:
        """Return what became of a rule's packets so far."""
        if isinstance(running, Hold):
            return cls(running.armed.rule, running.counts, running.fired)
        return cls(
            running.armed.rule, running.counts, running.fired, running.unedited, running.why_unedited, running.unheard
        )

    @property
    def is_untested(self) -> bool:
        """Whether it never fired, and not because its edit failed: the run did not test what it was for."""
        return not (self.fired or self.unedited)

    def named_counts(self) -> dict[str, int]:
        """Return the counts by their names, of an edit with ``unedited``, of ``return`` with ``returned``."""
        more = {"unedited": self.unedited} if VERDICTS[self.rule.verdict].changes_bytes else {}
        return asdict(self.counts) | more | ({"returned": self.counts.verdicts} if self.rule.verdict == RETURN else {})

    def lines(self) -> list[str]:
        """Return it for people: the rule with its counts, and what the rule did not ask for."""
        counts = self.named_counts().items()
        shown = [f"{name} {count}" for name, count in counts if name == "arrived" or (count and name != "verdicts")]
        why = (
            f": {inside.function}() was not called"
            if (inside := self.rule.inside) and not self.counts.surrounded
            else ""
        )
        return [
            f"{self.rule}: {', '.join(shown)}",
            *self.counts.caveats,
            *([] if self.fired else [f"never fired{why}"]),
        ]


def _unedited(rules: Iterable[RuleOutcome]) -> tuple[str, ...]:
    return tuple(f"{one.rule}: {one.why_unedited}" for one in rules if one.unedited)


@dataclass(frozen=True)
class Outcome:
    """What came of a run.

    :param status: the command's, as a shell has it: 128 and the signal's number where a signal ended it
    :param duration_s: of the command
    :param output: what it wrote to standard output and standard error, where that was captured
    :param complaints: of the guest's kernel, since the lab was booted or joined
    :param link: frames that the lab's links have lost since then
    :param events_lost: hits that found the ring of events full, since the session began
    :param undecided: decisions that could not be carried out, each with its reason
    :param went: how the packets went that were decided about, in that order: ``icmp_rcv @2 released``
    """

    status: int
    duration_s: float
    output: tuple[str, str]
    rules: tuple[RuleOutcome, ...]
    complaints: tuple[Complaint, ...]
    link: Losses
    events_lost: int
    undecided: tuple[str, ...] = ()
    went: tuple[str, ...] = ()

    @property
    def unfired(self) -> tuple[Rule, ...]:
        """The rules that never fired: the run did not test what they were for. Not those whose edit failed."""
        return tuple(one.rule for one in self.rules if one.is_untested)

    @property
    def unedited(self) -> tuple[str, ...]:
        """The rules whose edit failed, each with why it did the first time."""
        return _unedited(self.rules)

    @property
    def exit_status(self) -> int:
        """The command's status, or 1 where that is 0 and an edit failed."""
        return self.status or int(any(rule.unedited for rule in self.rules))


class Session:
    """Rules in force in a lab that runs, for one command. Use in a ``with``.

    ::

        with LabSpec().start() as lab, Session(lab, ["icmp_rcv = delay 300ms @2"]) as session:
            outcome = session.run(["ping", "-c", "3", "guest"])

    :param decisions: what is done with packets that the rules hold, and when (``skblab.decision``):
        ``"2.5s icmp_rcv = release @2"``

    Entering raises RuleError, UnknownFunction, UnsupportedVerdict, DebuggerError, UsageError.
    """

    def __init__(
        self,
        lab: Lab,
        rules: Sequence[Rule | str] = (),
        watcher: Watcher | None = None,
        *,
        decisions: Sequence[Decision | str] = (),
    ) -> None:
        check_lists(rules=rules, decisions=decisions)
        self.lab = lab
        self.rules = [rule if isinstance(rule, Rule) else Rule.parse(rule) for rule in rules]
        self.decisions = [one if isinstance(one, Decision) else Decision.parse(one) for one in decisions]
        self._watcher = watcher or Watcher()
        self._report = watcher.hit if watcher else ignore
        self._stack = contextlib.ExitStack()
        self._running: list[Running | Hold] = []
        self._debugger: Debugger | None = None
        self._client: process.Client | None = None
        self._interrupts: list[Decision] = []
        self._began_ns = 0
        self.command: tuple[str, ...] = ()
        self.directory = ""
        self.is_captured = False
        self.is_terminal = False  # then standard error is in what is captured of standard output
        self.outcome: Outcome | None = None
        self._is_open: bool | None = None  # None: not yet

    def __enter__(self) -> Self:
        if self._is_open is not None:
            raise UsageError("a session is entered once", hint=ONE_RUN)
        stops = [rule for rule in self.rules if VERDICTS[rule.verdict].needs == "gdb"]
        if stops and self.lab.guest.clock.is_virtual:
            raise UsageError(
                "gdb stops a kernel in real time", found=str(stops[0]),
                hint="without --time virtual; or the verdict trace",
            )  # fmt: skip
        with contextlib.ExitStack() as stack:
            self._lost_before = self.lab.agent.rules.lost
            self._deciding = stack.enter_context(contextlib.closing(Deciding(self.decisions, self.rules)))
            for rule in self.rules:
                running = self._in_force(rule)
                stack.push(running)
                self._running.append(running)
            if stops:
                self._debugger = stack.enter_context(self.lab.debugger())
                self.lab.stop_on_rules(self._debugger)
                self._debugger.resume()
            self._stack = stack.pop_all()
        self._is_open = True
        self.lab.ask_at_end(lambda: self.undecided)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_open = False
        self._stack.__exit__(kind, error, trace)

    def _in_force(self, rule: Rule) -> "Running | Hold":
        """Put a rule in force."""
        if not (self.decisions and is_decided(rule)):
            return self.lab.rule(rule, self._report)

        def report(hit: Hit) -> None:
            self._deciding.note(hit)
            self._report(hit)

        hold = self.lab.hold(rule.function, rule.filter, occurrence=rule.occurrence, inside=rule.inside, report=report)
        self._deciding.follow(hold)
        return hold

    def run(
        self,
        command: Sequence[process.Argument] = (),
        *,
        stdin: process.Stream = subprocess.DEVNULL,
        capture: bool = False,
        shown: bool = False,
        terminal: bool = False,
        timeout_s: float | None = None,
        directory: str = "",
    ) -> Outcome:
        """Run a command on the host side to its end; take the rules away, and return what came of it.

        Without a command, wait for a Ctrl-C. With one, the first Ctrl-C goes to the command; the second ends the run.

        :param stdin: of the command; not where a rule stops the kernel, for then a person may be asked
        :param capture: keep what the command writes
        :param shown: what is captured goes to this process's own streams, too, at once
        :param terminal: what is captured is written to a terminal, standard error with standard output
        :param directory: the command's; default: this process's
        :raises UsageError: its rules are not in force: it was not entered, or has run a command
        :raises GuestLost: the kernel has panicked, or ended, before the command
        :raises subprocess.TimeoutExpired: it ran longer than *timeout_s*; it was killed
        :raises CallbackFailed: the watcher raised
        :raises CannotWrite: what is shown could not be written
        """
        check_times(timeout_s=timeout_s)
        if not self._is_open:
            raise UsageError("the rules of this session are not in force: it runs one command", hint=ONE_RUN)
        clock = self.lab.guest.clock
        self.command, self.directory = tuple(map(os.fsdecode, command)), directory
        self.is_captured, self.is_terminal = capture, terminal
        with contextlib.ExitStack() as stack:
            kept = [
                stack.enter_context(Kept(number if shown else None, terminal=terminal))
                for number in ((1,) if terminal else (1, 2))
                if capture
            ]
            out, err = (kept[0].fileno(), kept[-1].fileno()) if kept else (None, None)
            stdin = subprocess.DEVNULL if self._debugger else stdin
            self._began_ns = clock.monotonic_ns
            self._deciding.begin(self._began_ns)
            self._client = client = (
                self.lab.popen(
                    command, stdin=stdin, stdout=out, stderr=err, directory=directory,
                    new_session=terminal or any(one.word == INTERRUPT for one in self.decisions),
                ) if command else None
            )  # fmt: skip
            status = self._wait(client, timeout_s)
            duration_s = (clock.monotonic_ns - self._began_ns) / 1e9
            self.lab.check()
            self._is_open = False
            self._stack.close()
            self.outcome = Outcome(
                process.exit_status(status),
                duration_s,
                (kept[0].text() if kept else "", kept[1].text() if kept[1:] else ""),
                tuple(map(RuleOutcome.of, self._running)),
                self.lab.new_complaints,
                self.lab.link_losses,
                self.lab.agent.rules.lost - self._lost_before,
                self.undecided,
                self._deciding.went,
            )
            return self.outcome

    def save(self, path: Path | str, *, end: str = "") -> None:
        """Write the run to a new file, which ``skblab replay`` does again; to ``test_*.py``, as a test for pytest.

        :param end: how it ended, if not with its command
        :raises UsageError: nothing has run to its end; or the lab was joined: what was done in it before is not known
        :raises CannotWrite: there is such a file, or it cannot be written
        """
        from skblab.saved import SavedRun  # noqa: PLC0415 - a saved run is run by a session

        SavedRun.of(self, end).write(path)

    @property
    def fired(self) -> tuple[bool, ...]:
        """Of each rule, whether it has fired so far."""
        return tuple(one.fired for one in self._running)

    @property
    def unedited(self) -> tuple[str, ...]:
        """The rules whose edit has failed so far, each with why it did the first time."""
        return _unedited(map(RuleOutcome.of, self._running))

    @property
    def undecided(self) -> tuple[str, ...]:
        """The decisions that were not carried out."""
        return self._deciding.undecided

    @property
    def interrupts(self) -> tuple[Decision, ...]:
        """The Ctrl-C that the command was given, as a decision."""
        return tuple(self._interrupts)

    def _interrupt(self) -> None:
        """Give the command, which is in a session of its own, a Ctrl-C."""
        if isinstance(self._client, Command):
            self._client.send_signal(signal.SIGINT)
        elif self._client:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._client.pid, signal.SIGINT)

    def _wait(self, client: process.Client | None, timeout_s: float | None) -> int:
        """Wait for a client's end; return its status. Without one, a Ctrl-C ends it, with status 0.

        A client may end before gdb has reported a stop: the watcher gets every stop.

        :raises DebuggerError: gdb does not report one
        """
        guest, debugger = self.lab.guest, self._debugger
        left_s = self.lab.guest.clock.countdown(timeout_s)
        watched: list[Watched] = [guest.notifications, guest.pidfd, *([debugger] if debugger else [])]
        reported, ended = 0, False
        with contextlib.ExitStack() as stack:
            end = _end_of(client, stack) if client else None
            while True:
                try:
                    ready = self._ready(None if ended else end, watched, client, left_s)
                except KeyboardInterrupt:
                    if client:
                        raise
                    return 0
                if guest.pidfd in ready:
                    raise guest.lost()
                if guest.notifications in ready and guest.notification().kind is Kind.PANIC:
                    wait([guest.pidfd], LAST_WORDS_S)  # gdb may hold it there
                    raise guest.lost()
                if debugger and debugger in ready:
                    self._report_stop(debugger)
                    reported += 1
                elif end is not None and end in ready:
                    ended, left_s = True, guest.clock.countdown(LAST_STOP_S)
                if client and ended and reported >= self._stops:
                    return client.wait()

    def _ready(
        self, end: int | None, watched: "Sequence[Watched]", client: process.Client | None, left_s: TimeLeft
    ) -> "list[Watched]":
        """Wait for a client's end, or for one of those that are watched, and pass a Ctrl-C on to the client.

        :raises subprocess.TimeoutExpired: the time is over; the client was killed
        :raises DebuggerError: it is over, and gdb has not reported a stop
        """
        try:
            return self._waited(end, watched, client, left_s)
        except KeyboardInterrupt:
            if client is None:
                raise
        decision = Decision(self.lab.guest.clock.monotonic_ns - self._began_ns, INTERRUPT)
        self._interrupts.append(decision if self.lab.guest.clock.is_virtual else by_hand(decision))
        process.interrupt(client)
        return self._waited(end, watched, client, left_s)

    def _waited(
        self, end: int | None, watched: "Sequence[Watched]", client: process.Client | None, left_s: TimeLeft
    ) -> "list[Watched]":
        clock = self.lab.guest.clock
        began_s = clock.monotonic_ns / 1e9
        with wakeup() as woken:
            while True:
                ends: list[Watched] = [] if end is None else [end]
                due_s = self._deciding.due_s(clock.monotonic_ns) if end is not None else None
                next_s = min((one for one in (left_s(), due_s) if one is not None), default=None)
                ready = clock.wait(ends, next_s, at_once=[*watched, woken, self._deciding])
                if not ready and due_s is not None and due_s == next_s:
                    self._deciding.carry_out(clock.monotonic_ns, self._interrupt)
                    continue
                if ready == [self._deciding]:
                    self._deciding.hear()
                    continue
                if not ready and client and end is None:  # which has ended
                    raise DebuggerError(
                        f"gdb has not reported a stop within {LAST_STOP_S:g} s of the command's end",
                        found=f"rules have stopped the kernel {self._stops} times",
                    )
                if not ready:
                    if client:
                        process.end(client)
                    raise subprocess.TimeoutExpired(list(self.command), clock.monotonic_ns / 1e9 - began_s)
                if ready != [woken]:
                    return [one for one in ready if one is not self._deciding]
                os.read(woken, 4096)

    @property
    def _stops(self) -> int:
        return sum(one.counts.stopped for one in self._running) if self._debugger else 0

    def _report_stop(self, debugger: "Debugger") -> None:
        stopped = debugger.wait_stop(STOP_TIMEOUT_S)
        raw = stopped.packet
        packet = Packet(bytes.fromhex(raw.linear), raw.protocol) if raw else None
        frames = tuple((frame.function, frame.file, frame.line) for frame in stopped.frames if not frame.inline)
        self._watcher.stopped(Stop(stopped.at_ns, packet, frames))
        self._watcher.resumed((debugger.resume() - stopped.at_ns) / 1e9)


def _end_of(client: process.Client, stack: contextlib.ExitStack) -> int:
    """Return a descriptor that is readable when a client has ended."""
    if isinstance(client, Command):
        return client.fileno()
    pidfd = os.pidfd_open(client.pid)
    stack.callback(os.close, pidfd)
    return pidfd
