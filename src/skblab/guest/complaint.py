"""Recognise complaints of the guest's kernel in its console: WARNING, BUG, KASAN, lockdep and the like.

Pure code. A complaint is a record of the kernel's log; a program's output on the same console is not. They differ by
the timestamp (``[    1.234567] ``) that printk puts before each line, and by the carriage return that a terminal
appends to each line of a program.
"""

import itertools
import re
import textwrap
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from skblab.guest.losses import Losses

# kernel/printk/printk.c info_print_prefix(); an unfinished line of a program may precede it.
RECORD = re.compile(r"\[ *(\d+\.\d{6})\](?:\[ *[TC]\d+\])? ?(.*)")
CUT_HERE = re.compile(r"-+\[ cut here \]-+$")
END_TRACE = re.compile(r"---\[ end trace\b")
FRAME = re.compile(r"={20,}$")  # before and after a sanitizer's report
CALL_TRACE = re.compile(r"\s*Call Trace:")
NO_CALL_TRACE = re.compile(r"Received SIGSEGV in SIGSEGV handler")  # arch/um/kernel/sysrq.c show_stack()
ENTRY = re.compile(r"\s*(?:\[<[0-9a-f]+>\] )?(?:\? )?([\w.]+)\+0x([0-9a-f]+)/0x[0-9a-f]+(?: \[\w+\])?$")
IN_A_TRACE = re.compile(r"\s*(?:</?(?:TASK|IRQ|NMI)>|\[<[0-9a-f]+>\].*)?$")

# Functions of kernel/panic.c, lib/dump_stack.c and the checkers that print a report: not on the path to the fault.
PRINTING = re.compile(
    r"_?_?v?printk.*|(?:dump|show)_(?:stack|trace)\w*|__warn|warn_slowpath_\w+|v?panic|(?:__)?ubsan_\w+|"
    r"handle_\w+_access|print_(?:report|address_description\w*|modules|\w+_bug\w*)|kasan_report\w*|__asan_\w+|"
    r"lockdep_rcu_suspicious|__schedule_bug|warn_alloc|debug_print_object"
)
NAMED = re.compile(r".*\b(?:at|in) (?:\S+:\d+ )?([\w.]+)\+0x")  # the function that the report's first lines name
PRINTING_GAP = 8  # stale entries of other calls, at most, between two of those

# Lines between a report's first lines and its call trace say where it was, not what; and lines that separate the parts.
WHERE = re.compile(r"Modules linked in:|CPU: \d|Pid: |\s*(?:Not t|T)ainted|Stack:|\s*Call Trace:|\d+ locks? held")
DIVIDES = re.compile(r"[\d.]+\S* #\d|-{20,}|={20,}|INFO: lockdep is turned off|\s*$")
FIRST_LINES = 3
SHOWN_FUNCTIONS = 16
SILENCE_S = 1.0  # by the kernel's clock: a report is printed without pauses
MOST_LINES = 1000

# How a report begins, and its kind. The first match wins.
KINDS = (
    ("panic", r"Kernel panic - not syncing: |Kernel tried to "),
    ("kasan", r"BUG: KASAN: "),
    ("sanitizer", r"BUG: K(?:FENCE|CSAN|MSAN): "),
    ("ubsan", r"UBSAN: "),
    ("sleep", r"BUG: (?:sleeping function called|scheduling while atomic)"),
    ("slab", r"BUG \S+ \(.*\): |pagealloc: (?:memory corruption|single bit error)"),
    ("lockup", r"(?:watchdog: )?BUG: (?:soft|workqueue) lockup|watchdog: CPU\d+: .*LOCKUP"),
    ("lockdep", r"\[ BUG: |INFO: trying to register non-static key|BUG: (?:MAX_|key |looking up invalid subclass)"),
    ("bug", r"(?:\w+: )?BUG: |kernel BUG at "),
    ("oops", r"Oops\b|(?:general protection|double) fault|divide error|Unable to handle kernel |Kernel mode "),
    ("warning", r"WARNING: (?:CPU: \d+ PID: |\S+:\d+ at )"),
    ("lockdep", r"WARNING: (?=.*(?:lock|RCU|contention|chain_key))"),
    ("warning", r"WARNING: "),
    ("refcount", r"refcount_t: "),
    ("list", r"list_(?:add|del) corruption"),
    ("odebug", r"ODEBUG: "),
    ("ref_tracker", r"(?:ref_tracker: )?leaked reference|ref_tracker: (?:\S+@\S+ has |reference already released)"),
    ("hung task", r"INFO: task .* blocked for more than \d+ seconds"),
    ("rcu stall", r"(?:rcu: )?INFO: rcu\w* (?:self-)?detected"),
    ("netdevice", r"unregister_netdevice: waiting for .* to become free"),
    ("allocation", r".*: page allocation failure: order:|.*: vmalloc error: "),
    ("kmemleak", r"kmemleak: (?:\d+ new suspected memory leaks|unreferenced object)"),
    ("stack", r".*[Ss]tack overflow|stack-protector: |corrupted stack end"),
)
STARTS = re.compile("|".join(f"({start})" for _, start in KINDS))
ONE_LINE = {"netdevice", "kmemleak"}
FRAMED = {"kasan", "sanitizer", "ubsan"}
FINER = {"ubsan", "refcount", "list", "odebug", "ref_tracker", "bug"}  # kinds that the line next to a WARNING decides
FATAL = {"panic", "bug", "oops"}  # a panic that follows one of them is the same event


@dataclass(frozen=True)
class Complaint:
    """One report of the guest's kernel about a fault of its own.

    *kind* is one of ``KINDS``; *title* the report's first line; *at_s* its time in s since the guest's boot; *lines*
    the whole report, without timestamps; *trace* the functions on the stack, innermost first. On UML some of them may
    be of calls that had returned. *trace* is empty if the kernel printed no call trace, as in an interrupt of running
    code (arch/um/kernel/sysrq.c show_stack()).
    """

    kind: str
    title: str
    at_s: float
    lines: tuple[str, ...]
    trace: tuple[str, ...]

    @property
    def first_lines(self) -> tuple[str, ...]:
        """The beginning of the report: its title, and what was found."""
        said = itertools.takewhile(lambda line: not WHERE.match(line), self.lines)
        return tuple(itertools.islice((line for line in said if not DIVIDES.match(line)), FIRST_LINES))

    def fields(self) -> dict[str, Any]:
        """Return the fields of a JSON event."""
        return {"event": "complaint", **asdict(self)}

    def __str__(self) -> str:
        shown = [f"  #{number:<2} {function}()" for number, function in enumerate(self.trace[:SHOWN_FUNCTIONS])]
        more = [f"  ... {left} more"] if (left := len(self.trace) - len(shown)) else []
        return "\n".join([*self.first_lines, *shown, *more])


def kind_of(line: str) -> str | None:
    """Return the kind of the report that begins with a line, or None."""
    found = STARTS.match(line)
    return KINDS[found.lastindex - 1][0] if found and found.lastindex else None


@dataclass
class _Report:
    """A report in the course of being printed."""

    at_s: float
    kind: str
    cut_here: bool = False
    lines: list[str] = field(default_factory=list)
    traced: bool = False  # its call trace has begun

    def take(self, line: str) -> None:
        if len(self.lines) < MOST_LINES:
            self.lines.append(line)
        self.traced = self.traced or bool(CALL_TRACE.match(line) or NO_CALL_TRACE.match(line))

    @property
    def over(self) -> bool:
        """Whether the report ends before a line that is not a call trace entry."""
        return self.traced and not self.cut_here and self.kind not in FRAMED

    def complaint(self) -> Complaint | None:
        if not self.lines:
            return None
        return Complaint(self.kind, self.lines[0], self.at_s, tuple(self.lines), tuple(_functions(self.lines)))


def _functions(lines: list[str]) -> list[str]:
    """Return the functions of a report's first call trace, without those that print the report.

    An address at a function's start is a function pointer on the stack, not a return address.
    """
    start = next((number for number, line in enumerate(lines, 1) if CALL_TRACE.match(line)), 0)
    entries = []
    for line in lines[start:]:
        entry = ENTRY.match(line)
        if entry and int(entry[2], 16):
            entries.append(re.sub(r"\.(?:cold|part|constprop|isra)\b.*", "", entry[1]))
        elif start and not IN_A_TRACE.match(line):
            break
    first = 0
    for number, name in enumerate(entries):
        if number - first > PRINTING_GAP:
            break
        if PRINTING.fullmatch(name):
            first = number + 1
    named = next((found[1] for line in lines[:FIRST_LINES] if (found := NAMED.match(line))), "")
    return entries[entries.index(named, first) if named in entries[first:] else first :]


class Complaints:
    """Recognise complaints in a console's text as it is printed.

    Reports may nest (the code of a WARNING may trigger UBSAN): a report has the lines between its beginning and its
    end, without the lines of reports inside it.
    """

    def __init__(self) -> None:
        self._complete: list[Complaint] = []
        self._open: list[_Report] = []
        self._rest = ""
        self._last_s = 0.0

    def feed(self, text: str) -> None:
        """Process more console text; its last line may be incomplete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            record = None if line.endswith("\r") else RECORD.search(line)
            if record:
                self._take(float(record[1]), record[2])

    @property
    def open(self) -> bool:
        """Whether a report may still be being printed."""
        return bool(self._open)

    @property
    def complete(self) -> tuple[Complaint, ...]:
        """The finished reports."""
        return tuple(self._complete)

    @property
    def all(self) -> tuple[Complaint, ...]:
        """All reports so far, unfinished ones included."""
        return (*self._complete, *(one for report in self._open if (one := report.complaint())))

    def settle(self) -> None:
        """Finish the open reports: nothing more was printed."""
        self._end(len(self._open))

    def _take(self, at_s: float, line: str) -> None:
        if at_s - self._last_s > SILENCE_S:
            self.settle()
        self._last_s = at_s
        kind = kind_of(line)
        if CUT_HERE.match(line):
            self._begin(_Report(at_s, "warning", cut_here=True))
        elif self._open and self._belongs(kind):
            report = self._open[-1]
            if kind in FINER or not report.lines:
                report.kind = kind or report.kind
            report.take(line)
        elif kind:
            self._begin_with(at_s, kind, line)
        elif self._open:
            self._go_on(line)

    def _belongs(self, kind: str | None) -> bool:
        """Whether a line that could begin a report belongs to the last one: the line that names a WARNING's kind."""
        report = self._open[-1]
        return bool(kind and kind != "panic" and report.cut_here and not report.traced)

    def _begin_with(self, at_s: float, kind: str, line: str) -> None:
        before: list[str] = []
        if kind == "panic" and self._open and self._open[-1].kind in FATAL and not self._open[-1].traced:
            before = self._open.pop().lines
        self._begin(_Report(at_s, kind))
        for one in (*before, line):
            self._open[-1].take(one)
        if kind in ONE_LINE:
            self._end(1)

    def _begin(self, report: _Report) -> None:
        if self._open and self._open[-1].over:
            self._end(1)
        self._open.append(report)

    def _go_on(self, line: str) -> None:
        report = self._open[-1]
        if report.over and not IN_A_TRACE.match(line) and not ENTRY.match(line):
            self._end(1)
            return
        report.take(line)
        if END_TRACE.match(line) or (report.kind in FRAMED and FRAME.match(line)):
            self._end(1)

    def _end(self, count: int) -> None:
        for _ in range(count):
            if complaint := self._open.pop().complaint():
                self._complete.append(complaint)


class Complains(Protocol):
    """The part of a lab that concerns complaints."""

    name: str

    @property
    def new_complaints(self) -> tuple[Complaint, ...]:
        """The complaints since this process started or joined the lab."""

    @property
    def link_losses(self) -> Losses:
        """The frames that its links have lost since then."""


when_left: list[Callable[[Complains], object]] = []
"""Each is called with every lab of this process when the lab is closed, also after an error."""


def recognise(text: str) -> tuple[Complaint, ...]:
    """Return the complaints in a console's whole text."""
    complaints = Complaints()
    complaints.feed(text if text.endswith("\n") else f"{text}\n")
    return complaints.all


def in_words(complaints: Iterable[Complaint]) -> str:
    """Return complaints as text: their number, then each one's first lines and call trace."""
    every = tuple(complaints)
    times = "once" if len(every) == 1 else f"{len(every)} times"
    blocks = "\n".join(f"[{one.at_s:12.6f}] {one}".replace("\n", "\n  ") for one in every)
    return f"the guest's kernel complained {times}:\n" + textwrap.indent(blocks, "  ")
