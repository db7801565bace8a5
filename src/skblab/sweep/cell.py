"""A cell: one run of a scenario in virtual time with one set of faults, which has the same outcome every time."""

import dataclasses
import errno
import functools
import os
import shlex
import subprocess
from collections.abc import Container, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skblab.errors import GuestCommandFailed, GuestLost, Timeout, UsageError, check_lists, check_times
from skblab.event import Hit
from skblab.guest.nodes import HOST
from skblab.image.store import image_of, is_of_store
from skblab.lab import Lab
from skblab.packet import Packet
from skblab.rule import Inside, Rule
from skblab.scenario import digest
from skblab.session import Session, Watcher
from skblab.snmp import counters
from skblab.spec import HOST_ROOT, LabSpec
from skblab.sweep import servers, stem
from skblab.sweep.expect import End, Expected

AT = ("ip_rcv", "ipv6_rcv")  # every packet that a device receives, in both directions
PARTS = ("status", "stdout", "stderr", "files")
LIMIT_S = 300.0  # TCP gives up a connection after 127 s without an answer (net.ipv4.tcp_syn_retries)
MOST_KEPT = 32768  # characters of each output and file; the digest is of all
MOST_FILE_BYTES = 16 << 20
MISSING = (errno.ENOENT, errno.ENOTDIR)
COUNTERS = tuple(f"/proc/{whose}/net/{file}" for whose in ("self", "1") for file in ("snmp", "snmp6", "netstat"))


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What every cell runs. It can be pickled.

    :param spec: the guest, in virtual time, with its seed and its servers
    :param client: the command on the host side
    :param directory: the client's; default: this process's
    :param limit_s: of virtual time; a client that runs longer hangs
    :param at: functions at which packets are counted and meet faults
    :param filter: which packets: pcap-filter(7), and conditions
    :param inside: only inside these calls of another function: ``tcp_v4_rcv if tcp port 80``
    :param judged: what has to be as without a fault: ``"status"``, ``"stdout"``, ``"stderr"``, ``"files"``
    :param name: for people
    :param rules: in force in each cell, behind the cell's own
    :param files: of the guest, which count as what the client writes: their whole paths
    :param traced: the outcome has the kernel's functions that packets entered; that takes a fraction of a second
    :param expected: what has to be true of the outcome; a sweep compares with the run without a fault instead

    :raises UsageError: it is not in virtual time, or a field makes no sense
    """

    spec: LabSpec
    client: tuple[str, ...]
    directory: str = ""
    limit_s: float = LIMIT_S
    at: tuple[str, ...] = AT
    filter: str = ""
    inside: str = ""
    judged: tuple[str, ...] = PARTS
    name: str = ""
    rules: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    traced: bool = False
    expected: Expected = dataclasses.field(default_factory=Expected)

    def __post_init__(self) -> None:
        check_lists(client=self.client, at=self.at, judged=self.judged, rules=self.rules, files=self.files)
        if self.spec.time != "virtual":
            raise UsageError("a cell runs in virtual time: else it is another one each time", hint='time="virtual"')
        if not self.client:
            raise UsageError("a scenario needs a command", hint="skblab sweep ... -- curl -s http://guest/")
        if unknown := [one for one in self.judged if one not in PARTS]:
            raise UsageError(f"nothing of an outcome is called {unknown[0]}", hint=f"of {', '.join(PARTS)}")
        if not self.at:
            raise UsageError("no function at which packets meet faults", hint=f"for example {AT[0]}")
        if relative := [path for path in self.files if not path.startswith("/")]:
            raise UsageError(f"a file of the guest has its whole path: {relative[0]}", hint="/root/result")
        check_times(limit_s=self.limit_s, positive=True)
        Inside.parse(self.inside)
        if not self.directory and self.spec.root == HOST_ROOT:
            object.__setattr__(self, "directory", str(Path.cwd()))

    def command(self, rules: Sequence[str]) -> str:
        """Return the line for a shell that runs the scenario once under some rules."""
        spec, words = self.spec, ["skblab", "run", "--time", "virtual"]
        if spec.image_path:
            words += ["--image", spec.image_path.name if is_of_store(spec.image_path) else str(spec.image_path)]
        else:
            words += ["--series", spec.series, "--variant", spec.variant]
        words += ["--seed", str(spec.seed)] if spec.seed else []
        words += ["--root", spec.root]
        words += ["--userspace", spec.userspace] if spec.userspace else []
        words += ["--consoles", str(spec.consoles)] if spec.consoles else []
        default = LabSpec()
        for option, number, usual in (
            ("--memory", spec.memory_mib, default.memory_mib),
            ("--lease", spec.lease_s, default.lease_s),
            ("--most", spec.most_s, default.most_s),
            ("--timeout", spec.timeout_s, default.timeout_s),
        ):
            words += [option, f"{number:.15g}"] if number is not None and number != usual else []
        for option, values in (
            ("--node", spec.nodes),
            ("--module", spec.modules),
            ("-g", spec.commands),
            ("-r", (*rules, *self.rules)),
        ):
            words += [word for value in values for word in (option, value)]
        return shlex.join([*words, "--", *self.client])


@dataclass(frozen=True)
class Seen:
    """A packet where it entered a function; or a call of a function that has no packet to look at.

    :param at_s: since the client began
    :param verdict: what a fault did with it; "": nothing
    :param caller: without a packet, the function that called
    """

    at_s: float
    function: str
    packet: Packet
    verdict: str = ""
    caller: str = ""

    @property
    def ends(self) -> tuple[str, str]:
        """Its addresses: from, to."""
        return self.packet.source, self.packet.destination

    @property
    def summary(self) -> str:
        """The packet in one line; or, without one, the caller."""
        return f"called by {self.caller}" if self.caller else self.packet.summary()


@dataclass(frozen=True, kw_only=True)
class CellOutcome:
    """What came of a cell.

    :param end: the client ended; it hung; the guest's kernel died; or the process that ran the cell did
    :param status: of the client, as a shell has it
    :param duration_s: of the client, in virtual time
    :param stdout: its beginning, like *stderr*
    :param digests: of the whole of both
    :param counters: of the kernel's network, of both nodes, those that are not 0: ``host Tcp RetransSegs``
    :param listening: where servers listen in the guest when the client has ended: ``guest tcp 80``
    :param complaints: first lines of what the guest's kernel complained of
    :param packets: at the functions of the scenario
    :param fired: for each rule, the cell's and then the scenario's, whether it did its verdict
    :param unedited: rules whose edit failed, each with why
    :param files: of each: its path, its digest ("": no such file), and its beginning
    :param functions: of the kernel, that packets entered, where the scenario is traced
    :param why: more about an end that is no end of the client
    """

    end: End = "ended"
    status: int = 0
    duration_s: float = 0.0
    stdout: str = ""
    stderr: str = ""
    digests: tuple[str, str] = ("", "")
    counters: dict[str, int] = dataclasses.field(default_factory=dict)
    listening: tuple[str, ...] = ()
    complaints: tuple[str, ...] = ()
    packets: tuple[Seen, ...] = ()
    fired: tuple[bool, ...] = ()
    unedited: tuple[str, ...] = ()
    files: tuple[tuple[str, str, str], ...] = ()
    functions: tuple[str, ...] = ()
    why: str = ""

    def fields(self) -> dict[str, Any]:
        """Return it for a file of JSON."""
        packets = [[one.at_s, one.function, one.packet.data.hex(), one.packet.protocol, one.verdict, one.caller]
                   for one in self.packets]  # fmt: skip
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)} | {"packets": packets}

    @classmethod
    def read(cls, fields: dict[str, Any]) -> "CellOutcome":
        """Return an outcome as ``fields()`` wrote it."""
        packets = [Seen(at_s, function, Packet(bytes.fromhex(data), protocol), verdict, caller)
                   for at_s, function, data, protocol, verdict, caller in fields["packets"]]  # fmt: skip
        names = ("digests", "listening", "complaints", "fired", "unedited", "functions")
        tuples = {name: tuple(fields[name]) for name in names}
        files = tuple((path, digest, text) for path, digest, text in fields["files"])
        return cls(**{**fields, **tuples, "packets": tuple(packets), "files": files})


class _Watcher(Watcher):
    """Keeps every hit."""

    def __init__(self) -> None:
        self.hits: list[Hit] = []

    def hit(self, hit: Hit) -> None:
        self.hits.append(hit)


_image = functools.lru_cache(maxsize=16)(image_of)  # once a process: a store has many


def run_cell(scenario: Scenario, rules: Sequence[str] = ()) -> CellOutcome:
    """Run a scenario under some rules; return what came of it.

    :raises SkblabError: the guest cannot be booted, its servers do not start, or a rule cannot be put in force
    """
    faults = [Rule.parse(rule) for rule in (*rules, *scenario.rules)]
    opened = _image(scenario.spec.image_path, scenario.spec.series, scenario.spec.variant)
    return stem.run(scenario.spec, opened, functools.partial(_run_in, scenario, faults, len(rules)))


def _run_in(scenario: Scenario, faults: Sequence[Rule], of_cell: int, lab: Lab) -> CellOutcome:
    inside = Inside.parse(scenario.inside)
    seen = [Rule(function, "trace", filter=scenario.filter, inside=inside) for function in scenario.at]
    watcher = _Watcher()
    with lab.trace(returns=False) if scenario.traced else nullcontext() as tracer:
        began_ns, found, runs = lab.guest.clock.monotonic_ns, CellOutcome(), False
        session = Session(lab, [*faults, *seen], watcher)
        try:
            with session:
                runs = True
                outcome = session.run(
                    scenario.client, capture=True, timeout_s=scenario.limit_s, directory=scenario.directory
                )
            stdout, stderr = outcome.output
            found = CellOutcome(
                status=outcome.status,
                duration_s=round(outcome.duration_s, 9),
                stdout=stdout[:MOST_KEPT],
                stderr=stderr[:MOST_KEPT],
                digests=(digest(stdout), digest(stderr)),
                counters=_counters(lab, scenario),
                listening=_listening(lab),
                files=tuple(_file(lab, path) for path in scenario.files),
            )
        except subprocess.TimeoutExpired:
            found = CellOutcome(
                end="hung", why=f"it still ran after {scenario.limit_s:g} s", counters=_counters(lab, scenario)
            )
        except Timeout as error:  # one of its programs computes for ever
            if not runs:
                raise
            found = CellOutcome(end="hung", why=error.what)
        except GuestLost as error:
            found = CellOutcome(end="died", why=str(error.what))
        complaints = tuple(one.title for one in lab.new_complaints)
        functions = {step.function.name for step in tracer.trace().steps} if tracer and found.end != "died" else ()
    hits = sorted(watcher.hits, key=lambda hit: hit.at_ns)
    fired = (*session.fired, *(False for _ in faults))
    return dataclasses.replace(
        found,
        complaints=complaints,
        unedited=session.unedited,
        functions=tuple(sorted(functions)),
        packets=tuple(_seen(hit, began_ns) for hit in hits),
        fired=tuple(
            has_fired or (at < of_cell and any(_is_of(hit, rule) for hit in hits))
            for at, (has_fired, rule) in enumerate(zip(fired, faults, strict=False))
        ),
    )


def _seen(hit: Hit, began_ns: int) -> Seen:
    verdict = "" if hit.verdict == "trace" else hit.verdict
    return Seen((hit.at_ns - began_ns) / 1e9, hit.function, hit.packet, verdict, hit.caller)


def _is_of(hit: Hit, rule: Rule) -> bool:
    """Whether a hit is of a cell's own hold: a packet was held, though no other came to be put before it."""
    last = rule.occurrence.last or hit.occurrence
    is_taken = hit.function == rule.function and rule.occurrence.first <= hit.occurrence <= last
    return is_taken and hit.verdict == rule.verdict == "hold"


def _file(lab: Lab, path: str) -> tuple[str, str, str]:
    """Return a file's path, the digest of its content, and the content's beginning.

    :raises UsageError: it is longer than MOST_FILE_BYTES
    :raises GuestCommandFailed: it is a directory, or cannot be read for another reason
    """
    try:
        content = lab.guest.read(path, node=HOST, most_bytes=MOST_FILE_BYTES + 1)
    except GuestCommandFailed as error:
        if not any(os.strerror(number) in error.found for number in MISSING):
            raise
        return path, "", ""
    if len(content) > MOST_FILE_BYTES:
        raise UsageError(f"{path} in the guest is longer than {MOST_FILE_BYTES >> 20} MiB", hint="write its digest")
    return path, digest(content), content.decode(errors="replace")[:MOST_KEPT]


def _counters(lab: Lab, scenario: Scenario) -> dict[str, int]:
    """Return the network counters of the node "host" and of the guest's own."""
    try:
        said = lab.guest.read(*COUNTERS, node=HOST, timeout_s=10)
    except (GuestCommandFailed, subprocess.TimeoutExpired):  # a disk without /proc
        return {}
    return parse_counters(said.decode(errors="replace"), {name for name, *_ in scenario.expected.counters})


def _listening(lab: Lab) -> tuple[str, ...]:
    try:
        return servers.listening(lab)
    except subprocess.TimeoutExpired:
        return ()


def parse_counters(text: str, named: Container[str] = ()) -> dict[str, int]:
    """Read /proc/net/snmp, snmp6 and netstat of the host's node, then of the guest's.

    Leave out what is 0, but for those that are *named*.
    """
    found: dict[str, int] = {}
    node = "host"
    for group, name, value in counters(text):
        words = f"{group} {name}" if group else name
        if f"{node} {words}" in found:
            node = "guest"
        found[f"{node} {words}"] = value
    return {name: value for name, value in found.items() if value or name in named}
