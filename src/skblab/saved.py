"""A saved run: a guest, a command, rules, decisions and what came of them, in a file of TOML; and the same again.

::

    client = ["ping", "-c3", "guest"]
    rules = ["icmp_rcv = hold if icmp"]
    decisions = ["2s icmp_rcv = release @2", "2s icmp_rcv = release @1"]

    [lab]                       # the fields of LabSpec
    time = "virtual"

    [outcome]                   # what is compared; leave out what need not be the same
    status = 0
"""

import contextlib
import dataclasses
import difflib
import math
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Self

from skblab import files, toml
from skblab.decision import Decision
from skblab.errors import CannotWrite, GuestLost, ImageMissing, UsageError, check_lists, check_times
from skblab.image.image import Image
from skblab.image.store import find_image, open_named
from skblab.lab import Lab
from skblab.rule import Rule
from skblab.scenario import LAB, digest, lab_spec, lab_table, words
from skblab.session import RuleOutcome, Session, Watcher
from skblab.spec import HOST_ROOT, LabSpec

LIMIT_S = 300.0  # behind the last decision; TCP gives up a connection after 127 s without an answer
MOST_KEPT = 4096  # characters of an output; of a longer one the file has the digest
WORSE = ("end", "unfired", "unedited", "undecided", "complaints")  # where it was not meant, it is another outcome
MOST_SHOWN = 40  # lines of a difference
OUTCOME = "outcome"
KEYS = {"client": (), "servers": (), "rules": (), "decisions": (), "directory": "", "limit_s": 0.0, "terminal": False,
        "image": ""}  # fmt: skip
OF_OUTCOME = {
    "end": "", "status": 0, "duration_s": 0.0, "stdout": "", "stderr": "", "stdout_sha256": "", "stderr_sha256": "",
    "counts": (), "unfired": (), "unedited": (), "went": (), "undecided": (), "complaints": (),
}  # fmt: skip
OF_NUMBERS = {"status": "outcome.status", "duration_s": "round(outcome.duration_s, 9)"}  # in a test, as in OF_LISTS
OF_LISTS = {
    "counts": "[counted(one) for one in outcome.rules]",
    "unfired": "[str(one) for one in outcome.unfired]",
    "unedited": "[without_bytes(one) for one in outcome.unedited]",
    "went": "[*outcome.went]",
    "undecided": "[*outcome.undecided]",
    "complaints": "[*complained(lab)]",
}
TIMES = re.compile(
    r"\d+(?:\.\d+)?(?=\s?(?:ns|us|\N{MICRO SIGN}s|ms|s|seconds?)\b)"  # 0.3 ms
    r"|\d+\.\d+(?:/\d+\.\d+)+"  # ping's rtt min/avg/max/mdev
)
FORM = 'client = ["ping", "-c1", "guest"], rules = ["..."], [lab] (docs/how-to/replay.md)'


def but_for_times(text: str) -> str:
    """Return a text without its times, which differ each time in real time: ``time=0.3 ms`` becomes ``time=# ms``."""
    return TIMES.sub("#", text)


def without_bytes(unedited: str) -> str:
    """Return a rule whose edit failed, and why, without the packet's bytes: those of a ping differ each time."""
    return unedited.partition("; ")[0]


def counted(rule: RuleOutcome) -> str:
    """Return a rule's counts in words, without the rule."""
    first, *rest = rule.lines()
    return "; ".join([first.removeprefix(f"{rule.rule}: "), *rest])


@dataclass(frozen=True, kw_only=True)
class SavedRun:
    """A run that can be done again: ``run()`` does it, ``differences()`` compares.

    :param spec: the guest, with its servers
    :param client: the command on the host side; its words
    :param rules: rules, as ``Rule.parse()`` reads them
    :param decisions: what was done with packets that the rules held, as ``Decision.parse()`` reads them
    :param directory: the client's; default: this process's
    :param limit_s: how long the client may run, then it is ended; default: LIMIT_S behind the last decision
    :param terminal: the client writes to a terminal
    :param image: the name of the image that it ran on
    :param outcome: what came of it: the keys of ``[outcome]``
    :param note: for people, above everything else in the file

    :raises UsageError: a field makes no sense
    :raises RuleError: a rule or a decision cannot be parsed
    """

    spec: LabSpec
    client: tuple[str, ...]
    rules: tuple[str, ...] = ()
    decisions: tuple[str, ...] = ()
    directory: str = ""
    limit_s: float = 0.0
    terminal: bool = False
    image: str = ""
    outcome: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    def __post_init__(self) -> None:
        check_lists(client=self.client, rules=self.rules, decisions=self.decisions)
        if not self.client:
            raise UsageError("a run needs a command", hint='client = ["ping", "-c1", "guest"]')
        check_times(limit_s=self.limit_s)
        if zero := [one for one in (*self.client, *self.spec.commands, self.directory) if "\0" in one]:
            raise UsageError(f"a word with a NUL byte: {zero[0]!r}")
        for rule in self.rules:
            Rule.parse(rule)
        for decision in self.decisions:
            Decision.parse(decision)

    @classmethod
    def of(cls, session: Session, end: str = "") -> Self:
        """Return what a session has run.

        :param end: how it ended, if the command did not
        :raises UsageError: nothing has run; or the lab was joined: nobody knows what was done in it before
        """
        check_own(session.lab)
        if not session.command or not (session.outcome or end):
            raise UsageError("no command has run in this session", hint="session.run(), then session.save()")
        spec, rules = session.lab.spec, [*session.rules]
        decisions = sorted((*session.decisions, *session.interrupts), key=lambda one: one.at_ns)
        duration_s = session.outcome.duration_s if session.outcome else 0.0
        return cls(
            spec=spec,
            client=session.command,
            rules=tuple(map(str, rules)),
            decisions=tuple(map(str, decisions)),
            directory=session.directory or (str(Path.cwd()) if spec.time == "real" or spec.root == HOST_ROOT else ""),
            limit_s=math.ceil(2 * duration_s) if 2 * duration_s > LIMIT_S else 0.0,
            image=session.lab.image.name,
            outcome=_outcome_of(session, end),
        )

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a file.

        :raises UsageError: it cannot be read, or makes no sense
        :raises ImageMissing: the image that it names is not there
        """
        path = Path(path)
        where, top = str(path), toml.read(path, FORM)
        toml.known(where, top, (*KEYS, LAB, OUTCOME))
        client = top.get("client", ())
        fields = {key: toml.typed(key, top[key], like) for key, like in KEYS.items() if key in top and key != "client"}
        servers = fields.pop("servers", ())
        outcome = toml.table(where, top, OUTCOME)
        toml.known(f"{where}: [{OUTCOME}]", outcome, OF_OUTCOME)
        outcome = {key: toml.typed(key, value, OF_OUTCOME[key]) for key, value in outcome.items()}
        spec = lab_spec(where, toml.table(where, top, LAB), servers)
        return cls(spec=spec, client=words(client), outcome=outcome, **fields)

    def write(self, path: Path | str) -> None:
        """Write it to a new file; to ``test_*.py``, as a test for pytest.

        :raises CannotWrite: there is such a file, or it cannot be written
        """
        path = Path(path)
        if path.suffix == ".py":
            said = "\n".join([*self._test_lines(path.stem), ""])
        else:
            said = "\n".join([*self._lines(), ""])
        with _new(path) as file:
            file.write(said.encode())

    def _lines(self) -> Iterator[str]:
        yield from (f"# {line}".rstrip() for line in (*self.note.splitlines(), "skblab replay does this run again."))
        if self.spec.time == "real":
            yield "# It is in real time: on a replay the times are about these; the order of the decisions is kept."
        yield ""
        some = {"servers": self.spec.commands, "client": self.client, "rules": self.rules}
        yield from toml.lines({name: value for name, value in some.items() if value})
        if self.decisions:
            yield from ("decisions = [", *(f"    {toml.quoted(one)}," for one in self.decisions), "]")
        rest = {name: getattr(self, name) for name in ("directory", "limit_s", "terminal", "image")}
        yield from toml.lines({name: value for name, value in rest.items() if value})
        yield from ("", f"[{LAB}]", *toml.lines(lab_table(self.spec)))
        if self.outcome:
            yield from ("", f"[{OUTCOME}]", *toml.lines(self.outcome))

    def _test_lines(self, name: str) -> Iterator[str]:
        """Yield the lines of a test for pytest that does the run, and asserts its outcome."""
        is_virtual = self.spec.time == "virtual"
        yield from (f"# {line}".rstrip() for line in (*self.note.splitlines(), f"It ran on the image {self.image}."))
        if not is_virtual:
            yield "# It was in real time: here the times are about these; the order of the decisions is kept."
        uses = [
            *([] if is_virtual else ["but_for_times"]),
            *(["complained"] if "complaints" in self.outcome else []),
            *(["counted"] if "counts" in self.outcome else []),
            *(["without_bytes"] if "unedited" in self.outcome else []),
        ]
        uses = [f"from skblab.saved import {', '.join(uses)}"] if uses else []
        yield from (*(["import hashlib", ""] if any("_sha256" in key for key in self.outcome) else []), "import pytest")
        yield from ("", "from skblab import Session", *uses, "")
        yield from (*_python("RULES", self.rules), *(_python("DECISIONS", self.decisions) if self.decisions else []))
        marked = lab_table(self.spec) | ({"commands": self.spec.commands} if self.spec.commands else {})
        marked |= {"counters": False} if is_virtual else {}  # to read them takes time
        marked |= {f"allow_{key}": True for key in WORSE[1:] if key in self.outcome}
        yield from ("", "", f"@pytest.mark.skblab({', '.join(f'{key}={value!r}' for key, value in marked.items())})")
        decided = ", decisions=DECISIONS" if self.decisions else ""
        limit = f", timeout_s={self.limit_s:g}" if self.limit_s else ""
        yield f"def {re.sub(r'[^A-Za-z0-9_]', '_', name)}(lab):"
        yield f"    with Session(lab, RULES{decided}) as session:"
        terminal = ", terminal=True" if self.terminal else ""
        yield f"        outcome = session.run({[*self.client]!r}, capture=True{terminal}{limit})"
        yield from (f"    {line}" for line in self._asserted())

    def _asserted(self) -> Iterator[str]:
        """Yield the assertions of a test."""
        if end := self.outcome.get("end"):
            yield f"assert outcome  # in the run that was saved, none was reached: {end}"
            return
        same = "{}" if self.spec.time == "virtual" else "but_for_times({})"
        for key, value in self.outcome.items():
            name, _, is_digest = key.partition("_sha")
            if name in {"stdout", "stderr"}:
                now = f"outcome.output[{int(name == 'stderr')}]"
                if is_digest:
                    yield f"assert hashlib.sha256({same.format(now)}.encode()).hexdigest() == {value!r}"
                else:
                    yield from ("assert " + same.format(now) + " == (", *_parts(value, same), ")")
            elif key in OF_LISTS:
                yield from (f"assert {OF_LISTS[key]} == [", *_listed(value), "]")
            elif key in OF_NUMBERS:
                yield f"assert {OF_NUMBERS[key]} == {value!r}"
        if "undecided" not in self.outcome:
            yield f"assert {OF_LISTS['undecided']} == []"

    def found_image(self) -> Image:
        """Return the image to run on: the one that it ran on, if it is there, else the newest of its kind.

        :raises ImageMissing: no image of its kind is there
        """
        if self.spec.image_path:
            return open_named(str(self.spec.image_path))
        try:
            return open_named(self.image) if self.image and "/" not in self.image else self._newest()
        except ImageMissing:
            return self._newest()

    def _newest(self) -> Image:
        return find_image(self.spec.series, self.spec.variant)

    def run(self, watcher: Watcher | None = None, *, shown: bool = False) -> "Self":
        """Do it again; return it with the outcome of this time.

        :param shown: what the command writes goes to this process's own streams, too, at once
        :raises SkblabError: the guest cannot be booted, its servers do not start, or a rule cannot be put in force
        """
        spec = dataclasses.replace(self.spec, image=self.found_image())
        is_here = spec.time == "real" or spec.root == HOST_ROOT
        if self.directory and is_here and not Path(self.directory).is_dir():
            raise UsageError(
                f"the run's directory is not there: {self.directory}", hint='directory = "..." in the file'
            )
        with spec.start() as lab, Session(lab, self.rules, watcher, decisions=self.decisions) as session:
            end, last_ns = "", max((one.at_ns for one in session.decisions), default=0)
            limit_s = self.limit_s or LIMIT_S + last_ns // 10**9
            try:
                session.run(
                    self.client, capture=True, shown=shown, terminal=self.terminal, timeout_s=limit_s,
                    directory=self.directory,
                )  # fmt: skip
            except subprocess.TimeoutExpired:
                end = f"it still ran after {limit_s:g} s"
            except GuestLost as error:
                end = error.what
            return dataclasses.replace(self, image=lab.image.name, outcome=_outcome_of(session, end))

    def differences(self, now: Self) -> "list[Difference]":
        """Return how the outcome of another time differs from this one, in all that this one has.

        Where this one has an outcome: also what is worse now.
        """
        found = []
        for key, before in self.outcome.items():
            after = now.outcome.get(key, OF_OUTCOME[key])
            if key.endswith("_sha256") and key not in now.outcome:
                after = digest(_compared(now.outcome.get(key.removesuffix("_sha256"), ""), self.spec))
            elif key in {"stdout", "stderr"} and f"{key}_sha256" in now.outcome:
                after = f"(more than {MOST_KEPT} characters)"
            is_timed = key in {"stdout", "stderr"} and self.spec.time == "real"
            if (but_for_times(before) != but_for_times(after)) if is_timed else (before != after):
                found.append(Difference(key, before, after))
        worse = [key for key in WORSE if self.outcome and key in now.outcome and key not in self.outcome]
        return found + [Difference(key, OF_OUTCOME[key], now.outcome[key]) for key in worse]


@dataclass(frozen=True)
class Difference:
    """What two outcomes do not have in common: ``what`` is a key of ``[outcome]``."""

    what: str
    saved: object
    now: object

    def __str__(self) -> str:
        before, after = map(_as_lines, (self.saved, self.now))
        lines = [line for line in difflib.unified_diff(before, after, n=0, lineterm="") if not line.startswith("@@")]
        shown = [f"  {line[0]} {line[1:]}" for line in lines[2:]] or [f"  - {self.saved!r}", f"  + {self.now!r}"]
        more = [f"  ... {len(shown) - MOST_SHOWN} lines more"] if len(shown) > MOST_SHOWN else []
        return "\n".join([f"differs: {self.what}", *shown[:MOST_SHOWN], *more])


def _as_lines(value: object) -> list[str]:
    if isinstance(value, str):
        return value.splitlines()
    return [str(one) for one in value] if isinstance(value, tuple | list) else [str(value)]


def _python(name: str, texts: Sequence[str]) -> list[str]:
    return [f"{name} = [", *_listed(texts), "]"]


def _listed(texts: Sequence[str]) -> list[str]:
    return [f"    {text!r}," for text in texts]


def _parts(text: str, same: str) -> list[str]:
    """Return a text as parts that Python puts together, a line each."""
    kept = text if same == "{}" else but_for_times(text)
    return [f"    {line!r}" for line in kept.splitlines(keepends=True)] or ['    ""']


def output(name: str, text: str, spec: LabSpec) -> dict[str, str]:
    """Return what an outcome keeps of an output: itself, or of a long one the digest of what is compared."""
    compared = _compared(text, spec)
    return {name: text} if len(compared) <= MOST_KEPT else {f"{name}_sha256": digest(compared)}


def _compared(text: str, spec: LabSpec) -> str:
    """Return what is compared of an output: in real time its times differ each time."""
    return but_for_times(text) if spec.time == "real" else text


def complained(lab: Lab) -> tuple[str, ...]:
    """Return what an outcome keeps of the complaints of a lab's kernel; a panic is how the run has ended."""
    return tuple(one.title for one in lab.new_complaints if one.kind != "panic")


def _outcome_of(session: Session, end: str = "") -> dict[str, Any]:
    """Return an outcome as a file has it: in virtual time all that is the same each time."""
    outcome, is_virtual = session.outcome, session.lab.spec.time == "virtual"
    found: dict[str, Any] = {"end": end} if end or outcome is None else {"status": outcome.status}
    if outcome:
        if is_virtual:
            found["duration_s"] = round(outcome.duration_s, 9)
        if session.is_captured:
            stdout, stderr = outcome.output
            spec = session.lab.spec
            found |= output("stdout", stdout, spec) | ({} if session.is_terminal else output("stderr", stderr, spec))
        if is_virtual and outcome.rules:
            found["counts"] = tuple(map(counted, outcome.rules))
    some = {
        "unfired": tuple(map(str, outcome.unfired)) if outcome else (),
        "unedited": tuple(map(without_bytes, outcome.unedited)) if outcome else (),
        "went": outcome.went if outcome else (),
        "undecided": outcome.undecided if outcome else session.undecided,
        "complaints": complained(session.lab),
    }
    return found | {name: value for name, value in some.items() if value}


def check_own(lab: Lab) -> None:
    """Refuse a lab that was up before.

    :raises UsageError: it was joined
    """
    if lab.is_joined:
        raise UsageError(
            f"lab {lab.name} was up already: what was done in it before would not be in the file",
            hint="a lab of its own: without --lab",
        )


def check_new(path: Path) -> None:
    """Refuse a file that cannot be written, before the run.

    :raises UsageError: it is no name of a saved run, or there is such a file
    :raises CannotWrite: its directory cannot be written
    """
    if path.suffix == ".py" and not path.name.startswith("test_"):
        raise UsageError(f"pytest would not find {path.name}", hint=f"--save test_{path.name}; or NAME.toml")
    files.check_new(path)


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    try:
        with files.whole(path, new=True) as file:
            yield file
    except CannotWrite as error:
        error.hint = error.hint or (f"another name, or rm {path}" if path.exists() else "another name")
        raise
