"""Lab: one running guest kernel with its private namespaces and link, and the clients on the other end."""

import itertools
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from skblab.agent.abi import Hit
from skblab.agent.control import DEFAULT_LEASE_S, Agent
from skblab.agent.streams import Hold, Probe, Running
from skblab.debugger import prompt
from skblab.debugger.session import Debugger
from skblab.errors import GuestLost, SkblabError, UsageError
from skblab.guest.boot import Guest
from skblab.guest.complaint import Complaint, when_left
from skblab.guest.console import Console
from skblab.guest.hearing import ComplaintWatch
from skblab.guest.losses import LossCount, Losses
from skblab.guest.panic import GuestPanicked, PanicWatch
from skblab.guest.terminal import Terminal
from skblab.host.namespace import JoinedNamespaces, Namespaces
from skblab.host.programs import HostPrograms
from skblab.image.image import Image
from skblab.image.module import ensure_agent
from skblab.packet import Packet
from skblab.parts import Parts
from skblab.rule import Occurrence, Rule
from skblab.serve import start_commands
from skblab.spec import LabFields, LabSpec
from skblab.trace.tracer import Tracer

HOW_TO_ENTER = "with Lab() as lab: ..."

_numbers = itertools.count(1)


class Lab(HostPrograms):
    """Boot a guest kernel on a private link; end it, and everything in it, on leaving.

    ::

        with Lab(root="host") as lab:
            lab.run(["ping", "-c", "1", "guest"])

    :param name: the lab's name; one lab a name. Default: one of its own
    :param spec: what to boot; or *fields*: LabSpec's, by keyword

    Entering raises ImageMissing, LabNameTaken, MissingPrerequisite, BootFailed, DiskError, DiskInUse.
    """

    def __init__(self, name: str | None = None, spec: LabSpec | None = None, **fields: Unpack[LabFields]) -> None:
        if spec and fields:
            raise UsageError("a lab is described by a LabSpec or by its fields", found=", ".join(fields))
        super().__init__()
        self.spec = spec or LabSpec(**fields)
        self.name = name or f"lab-{os.getpid()}-{next(_numbers)}"
        image = fields.get("image")
        self._image = image if isinstance(image, Image) else None
        self._joins = False
        self._parts: Parts | None = None
        self._stack: ExitStack | None = None
        self._losses: LossCount | None = None
        self._complaints_before = 0

    @classmethod
    def join(cls, name: str, *, lease_s: float = DEFAULT_LEASE_S) -> Self:
        """Return a lab that runs already (``keep()``, ``skblab up``); leaving it ends only what was asked for here.

        Entering raises NoSuchLab.
        """
        lab = cls(name, lease_s=lease_s)
        lab._joins = True
        return lab

    def __enter__(self) -> Self:
        if self._stack is not None:
            raise UsageError(f"lab {self.name} is running already")
        self._pid, self._is_closed = os.getpid(), False
        self._clients, self._switch, self._losses = [], None, None
        with ExitStack() as stack:
            stack.callback(self._left)
            self._parts = parts = Parts(self.name, self.spec, self._why_lost)
            if self._joins:
                parts.join(stack)
            else:
                parts.boot(stack, self._image)
            self._losses = LossCount(self.namespaces.drops, self._guest_losses)
            stack.callback(self._end_clients)  # before the kernel that they talk to
            if self._joins:
                self._complaints_before = len(self.complaints)
                self._losses.leave_out(Losses(0, 0, *self.namespaces.drops()))
            elif self.spec.commands:
                self.agent.wait_ready()
                start_commands(self.guest, self.agent, self.spec.commands)
            self._stack = stack.pop_all()
        return self

    def _having(self, name: str) -> Parts:
        """Return the parts, of which one is there.

        :raises UsageError: it is not: the lab has not been entered
        """
        if self._parts is None or not hasattr(self._parts, name):
            raise UsageError(f"lab {self.name} has not been entered: it has no {name} yet", hint=HOW_TO_ENTER)
        return self._parts

    @property
    def image(self) -> Image:
        """What the guest was booted from; it knows the functions of the modules that were loaded."""
        return self._having("image").image

    @property
    def namespaces(self) -> Namespaces:
        """The namespaces of the host side."""
        return self._having("namespaces").namespaces

    @property
    def console(self) -> Console:
        """What the guest's kernel has printed."""
        return self._having("console").console

    @property
    def guest(self) -> Guest:
        """The guest: its kernel's process, and the programs that run in it."""
        return self._having("guest").guest

    @property
    def terminals(self) -> list[Terminal]:
        """The guest's virtual consoles."""
        return self._having("terminals").terminals

    @property
    def terminal(self) -> Terminal | None:
        """The first of the guest's virtual consoles, or None."""
        return next(iter(self.terminals), None)

    @property
    def agent(self) -> Agent:
        """The agent in the guest's kernel; of a lab that was joined, ours from the first time it is asked for.

        :raises LabBusy: another controller of this lab has it
        """
        if (agent := self._parts.agent if self._parts else None) is None:
            agent = self._running.take_agent(self._stay())
            assert self._losses
            cut, no_memory, refused = agent.link_losses()
            self._losses.leave_out(Losses(cut, no_memory, 0, refused))
        return agent

    @property
    def _running(self) -> Parts:
        self.check()
        assert self._parts
        return self._parts

    def _guest_losses(self) -> tuple[int, int, int]:
        agent = self._parts.agent if self._parts else None
        return agent.link_losses() if agent else (0, 0, 0)

    def keep(self) -> None:
        """Let the lab outlive this process: ``Lab.join(name)`` finds it, ``end()`` and ``skblab down`` end it."""
        self._running.keep(self._ready_agent().channel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the lab, and nothing of it stays; leave it, if it was joined or is kept.

        In a child that was forked meanwhile this does nothing: the lab is its parent's.
        """
        stack, self._stack = self._stack, None
        if stack is None:
            return
        if os.getpid() != self._pid:
            stack.pop_all()
            return
        if self._losses:
            self._losses.count()
        self._is_closed = True
        stack.close()

    @property
    def guest_address(self) -> str:
        """The guest's first address on its first link, as text.

        :raises UsageError: it has none of a host side's: it is on another lab's switch, and was joined
        """
        links = self.namespaces.guest_links
        addresses = links[0].addresses if links else self.namespaces.addresses.guest
        if not addresses:
            raise UsageError(f"lab {self.name} has no host side of its own: its guest is on another lab's switch")
        return addresses[0].partition("/")[0]

    def rule(self, rule: Rule | str, told: Callable[[Hit, Packet, str], None] = lambda *_: None) -> Running:
        """Put a rule in force; close it to end it. *told* is called for each packet, with what was done to it.

        :raises RuleError: it cannot be parsed
        :raises UnknownFunction: there is no such function
        :raises UnsupportedVerdict: the verdict is not sound there
        """
        return Running(self._ready_agent(), rule if isinstance(rule, Rule) else Rule.parse(rule), told)

    def hold(self, function: str, filter: str = "", *, occurrence: Occurrence | None = None) -> Hold:  # noqa: A002
        """Set packets aside where they enter a function, while the kernel runs on. Use in a ``with``.

        :param filter: which ones, in pcap-filter(7)'s language
        """
        return Hold(self._ready_agent(), Rule(function, "hold", occurrence or Occurrence(), filter))

    def probe(self, function: str, filter: str = "", *, occurrence: Occurrence | None = None) -> Probe:  # noqa: A002
        """See packets where they enter a function. Use in a ``with``."""
        return Probe(self._ready_agent(), Rule(function, "trace", occurrence or Occurrence(), filter))

    def trace(
        self,
        patterns: Sequence[str] = (),
        *,
        calls: Sequence[str] = (),
        filter: str = "",  # noqa: A002
        fields: Sequence[str] = (),
        returns: bool = True,
        to: Path | None = None,
        about: dict[str, object] | None = None,
    ) -> Tracer:
        """Follow packets through the kernel's functions. Use in a ``with``; then ``trace()`` is what they did.

        :param patterns: of functions' names or files; none: all that take a packet
        :param calls: likewise, of functions that take none
        :param filter: which packets, in pcap-filter(7)'s language
        :param fields: more of a packet's members at each step, as in C: ``skb->dev->name``
        :param returns: tell when calls return, too, and what; without, who calls whom is not known
        :param to: where the trace file is to be kept
        :raises UnknownFunction: a pattern names no function
        :raises TraceError: a field is none, or the file cannot be written
        """
        return Tracer(
            self._ready_agent(), self.image, patterns, calls=calls, filter=filter, fields=fields, returns=returns,
            to=to, about=about,
        )  # fmt: skip

    def _ready_agent(self) -> Agent:
        self.check()
        self.agent.wait_ready()
        return self.agent

    def _why_lost(self) -> SkblabError:
        if self._is_closed:
            return GuestLost(f"lab {self.name} was closed", found="by another thread of this process")
        return self.guest.lost()

    @property
    def complaints(self) -> tuple[Complaint, ...]:
        """What the guest's kernel has complained of since it booted, its panic included; also when the lab is over."""
        console = getattr(self._parts, "console", None)  # None where the boot has not come so far
        return console.complaints() if console else ()

    @property
    def new_complaints(self) -> tuple[Complaint, ...]:
        """Those of ``complaints`` that have come since this lab was booted, or joined, here."""
        return self.complaints[self._complaints_before :]

    @property
    def link_losses(self) -> Losses:
        """Frames that its links have lost since this lab was booted, or joined, here; also when the lab is over.

        A guest that stands still cannot say what its own end has lost since it was asked last; of a lab that was
        joined, it is asked once ``agent`` is ours.
        """
        if self._losses is None:
            return Losses()
        if self._stack:
            self._losses.count()
        return self._losses.losses

    def excuse(self, losses: Losses) -> None:
        """Leave frames out of ``link_losses``: they were meant to be lost, and are counted elsewhere."""
        if self._losses:
            self._losses.leave_out(losses)

    def on_complaint(self, told: Callable[[Complaint], object]) -> ComplaintWatch:
        """Call *told*, from a thread of its own, with each of ``new_complaints``; close what is returned.

        :raises MissingPrerequisite: this user may have no more inotify instances
        """
        watch = ComplaintWatch(self.console, told, skip=self._complaints_before)
        self._stay().callback(watch.close)
        return watch

    def _left(self) -> None:
        for tell in when_left:
            tell(self)

    def on_panic(self, told: Callable[[GuestPanicked], object]) -> PanicWatch:
        """Call *told*, from a thread of its own, when the guest's kernel panics; close what is returned.

        Of a lab that has panicked already, it is told at once.
        """
        watch = self._running.guest.on_panic(told)
        self._stay().callback(watch.close)
        return watch

    def stop_on_rules(self, debugger: Debugger) -> int:
        """Let gdb stop the kernel wherever a rule's verdict is "stop"; return the stop's number."""
        agent = self._ready_agent()
        return debugger.set_agent_stop(agent.channel.stop_address, ensure_agent(self.image.path))

    def debugger(self) -> Debugger:
        """Return a gdb session on the guest kernel; entering it attaches."""
        self.check()
        return Debugger(self.image, self.guest, self.namespaces)

    def gdb_prompt(
        self, commands: Sequence[str] = (), *, user_init: bool = False, attached: Callable[[], object] = lambda: None
    ) -> int:
        """Give gdb's own prompt to whoever is at standard input; return gdb's exit status when they have left it.

        :param commands: gdb commands to begin with
        :param user_init: read the user's ~/.gdbinit first
        :param attached: is called once gdb has attached, and the kernel stands still; from boot, once it is ready
        :raises DebuggerError: gdb cannot attach
        """
        wanted = prompt.Wanted(tuple(commands), user_init, attached)
        if self.spec.from_boot:
            wanted = replace(wanted, booted=self._running.receive_one_by_one)
        return prompt.run(self.image, self.guest, self.namespaces, wanted, self._ready_agent)

    def _stay(self) -> ExitStack:
        self.check()
        assert self._stack
        return self._stack

    def check(self) -> None:
        """Raise GuestLost, with the console's evidence, where the guest kernel is gone."""
        if self._stack is None:
            raise UsageError(f"lab {self.name} is not running", hint=HOW_TO_ENTER)
        if not self.guest.alive:
            raise self.guest.lost()

    def end(self) -> None:
        """End a lab that was joined, whoever else uses it; return when it is gone."""
        assert isinstance(self.namespaces, JoinedNamespaces)
        self.namespaces.end()
