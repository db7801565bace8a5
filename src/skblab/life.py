"""How a lab begins and ends: entered, joined, kept, left; what it consists of, and what is counted meanwhile."""

import itertools
import os
import threading
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self, Unpack

from skblab.agent.control import DEFAULT_LEASE_S, Agent
from skblab.clock import MOST_S, VirtualClock
from skblab.errors import GuestLost, SkblabError, UsageError
from skblab.guest.boot import Guest
from skblab.guest.complaint import Complaint, when_left
from skblab.guest.console import Console
from skblab.guest.losses import LossCount, Losses
from skblab.guest.nodes import HOST
from skblab.guest.terminal import Terminal
from skblab.host import process
from skblab.host.namespace import JoinedNamespaces, Namespaces
from skblab.host.programs import HostPrograms
from skblab.image.image import Image
from skblab.parts import Parts
from skblab.serve import start_commands
from skblab.spec import HOST_ROOT, LabFields, LabSpec

HOW_TO_ENTER = "with Lab() as lab: ..."

_numbers = itertools.count(1)


class LabLife(HostPrograms):
    """A lab from its description to its end."""

    def __init__(
        self,
        name: str | None = None,
        spec: LabSpec | None = None,
        *,
        opened: Image | None = None,
        **fields: Unpack[LabFields],
    ) -> None:
        if spec and fields:
            raise UsageError("a lab is described by a LabSpec or by its fields", found=", ".join(fields))
        super().__init__()
        self.spec = spec or LabSpec(**fields)
        self.name = name or f"lab-{os.getpid()}-{next(_numbers)}"
        image = fields.get("image")
        self._image = image if isinstance(image, Image) else opened
        self._joins = False
        self._stem: Parts | None = None
        self._parts: Parts | None = None
        self._stack: ExitStack | None = None
        self._losses: LossCount | None = None
        self._complaints_before = 0
        self._taking = threading.RLock()  # the agent of a lab that was joined

    @classmethod
    def join(
        cls,
        name: str,
        *,
        lease_s: float = DEFAULT_LEASE_S,
        most_s: float = MOST_S,
        timeout_s: float | None = None,
    ) -> Self:
        """Return a lab that runs already (``keep()``, ``skblab up``); leaving it ends only what was asked for here.

        Entering raises NoSuchLab.

        :param lease_s: as of ``LabSpec``; also the others
        """
        lab = cls(name, lease_s=lease_s, most_s=most_s, timeout_s=timeout_s)
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
            elif self._stem:
                parts.branch(stack, self._stem)
            else:
                parts.boot(stack, self._image)
            self._losses = LossCount(self.namespaces.drops, self._guest_losses)
            stack.callback(self._end_clients)  # before the kernel that they talk to
            if self._joins:
                self._complaints_before = len(self.complaints)
                self._losses.leave_out(Losses(0, 0, *self.namespaces.drops()))
            elif self.spec.commands and not self._stem:
                self.agent.wait_ready()
                start_commands(self.guest, self.agent, self.spec.commands, self._nodes)
                if isinstance(parts.clock, VirtualClock):
                    parts.clock.settle()  # as before a branch: else what happens next would be another in one
            self._stack = stack.pop_all()
        if self._joins and parts.clock.is_virtual:
            self._take_clock()
        return self

    def branch(self) -> Self:
        """Return a lab that begins where this one is now: its kernel is a copy of this one's. One at a time.

        ::

            with LabSpec(time="virtual", root="host", commands=["python3 -m http.server 80"]).start() as lab:
                for rule in ("tcp_v4_rcv = drop @2", "tcp_v4_rcv = delay 1s @2"):
                    with lab.branch() as branch, branch.rule(rule):
                        branch.run(["curl", "-s", "http://guest/"])

        In virtual time. It takes milliseconds, and what the servers have done is done. Both go on as if the other were
        not there; but nothing can be run in this one until the branch is left.

        Entering it raises CannotBranch where more is asked for here: a rule, a trace, a client, a command in the guest
        that is not one of the servers; where the guest has disks or consoles; where the lab was joined, or is kept.

        :raises UsageError: the guest runs in real time
        """
        if not self.guest.clock.is_virtual:
            raise UsageError("a guest in real time never rests, and cannot branch", hint='LabSpec(time="virtual")')
        lab = self._another()
        lab.grow_from(self._running)
        return lab

    def _another(self) -> Self:
        """Return a lab of the same description."""
        return type(self)(self.name, self.spec)

    def grow_from(self, stem: Parts) -> None:
        """Begin as a branch of the lab with these parts."""
        self._stem = stem

    def _take_clock(self) -> None:
        """Take over a clock that another controller has left: it comes with the agent."""
        try:
            self.agent.wait_ready()
        except BaseException:
            self.close()
            raise

    @property
    def _nodes(self) -> tuple[str, ...]:
        return (HOST, *self.spec.nodes) if self.guest.clock.is_virtual else ()

    @property
    def is_joined(self) -> bool:
        """Whether it ran already: ``Lab.join()``."""
        return self._joins

    def keep(self) -> None:
        """Let the lab outlive this process: ``Lab.join(name)`` finds it, ``end()`` and ``skblab down`` end it.

        In virtual time one process at a time can use it: the one that grants time.
        """
        if self._stem:
            raise UsageError("a branch ends with its lab, and cannot be kept")
        self._running.keep(self._ready_agent().channel)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the lab, and nothing of it stays; leave it, if it was joined or is kept.

        In a child that was forked meanwhile this does nothing: the lab is its parent's.

        :raises UsageError: this is a callback of a rule or a trace, for whose end it would wait
        """
        if os.getpid() == self._pid and self._parts and self._parts.agent and self._parts.agent.link.is_calling:
            raise UsageError(
                "a callback cannot close its lab: the lab's end waits for the callback's",
                hint="raise an error, which comes out where the rule ends; or have another thread close it",
            )
        with process.undisturbed(only_once=True):
            stack, self._stack = self._stack, None
            if stack is None:
                return
            if os.getpid() != self._pid:
                stack.pop_all()
                return
            with stack:  # whatever comes
                try:
                    if self._losses:
                        self._losses.count()
                    if isinstance(self.guest.clock, VirtualClock) and (self._joins or self.namespaces.kept):
                        with suppress(SkblabError):  # the next controller finds the guest at rest
                            self.guest.clock.settle()
                finally:
                    self._is_closed = True

    def end(self) -> None:
        """End a joined lab, even while others use it; return when it is gone.

        :raises UsageError: it was not joined
        """
        if not isinstance(self.namespaces, JoinedNamespaces):
            raise UsageError(f"lab {self.name} was not joined", hint="close() ends a lab of one's own")
        self.namespaces.end()

    def check(self) -> None:
        """Raise GuestLost, with the console's evidence, where the guest kernel is gone."""
        if self._stack is None:
            raise UsageError(f"lab {self.name} is not running", hint=HOW_TO_ENTER)
        if not self.guest.alive:
            raise self.guest.lost()

    def check_open(self) -> None:
        """Raise GuestLost where another thread has closed the lab."""
        if self._is_closed:
            raise self._why_lost()

    @property
    def _running(self) -> Parts:
        self.check()
        assert self._parts
        return self._parts

    def _stay(self) -> ExitStack:
        self.check()
        assert self._stack
        return self._stack

    def _ready_agent(self) -> Agent:
        self.check()
        self.agent.wait_ready()
        return self.agent

    @property
    def _is_within(self) -> bool:
        return self.guest.clock.is_virtual

    def _start_within(
        self,
        argv: Sequence[process.Argument],
        stdio: tuple[process.Stream, process.Stream, process.Stream],
        env: dict[str, str] | None,
        directory: str,
    ) -> process.Client:
        stdin, stdout, stderr = stdio
        where = directory or (str(Path.cwd()) if self._running.root == HOST_ROOT else "")
        return self.guest.popen(argv, stdin=stdin, stdout=stdout, stderr=stderr, cwd=where, env=env, node=HOST)

    def _why_lost(self) -> SkblabError:
        if self._is_closed:
            return GuestLost(f"lab {self.name} was closed", found="by another thread of this process")
        return self.guest.lost()

    def _left(self) -> None:
        for tell in when_left:
            tell(self)

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
    def clock(self) -> VirtualClock:
        """The guest's clock in virtual time: it runs while somebody waits, and can be advanced.

        :raises UsageError: the guest runs in real time
        """
        clock = self._having("clock").clock
        if not isinstance(clock, VirtualClock):
            raise UsageError("a guest in real time has this machine's clock", hint='LabSpec(time="virtual")')
        return clock

    @property
    def terminals(self) -> list[Terminal]:
        """The guest's virtual consoles."""
        return self._having("terminals").terminals

    @property
    def agent(self) -> Agent:
        """The agent in the guest's kernel; of a lab that was joined, ours from the first time it is asked for.

        :raises LabBusy: another controller of this lab has it
        """
        if (agent := self._parts.agent if self._parts else None) is not None:
            return agent
        with self._taking:
            if (agent := self._running.agent) is None:
                agent = self._running.take_agent(self._stay())
                assert self._losses
                cut, no_memory, refused = agent.link_losses()
                self._losses.leave_out(Losses(cut, no_memory, 0, refused))
        return agent

    def _guest_losses(self) -> tuple[int, int, int]:
        agent = self._parts.agent if self._parts else None
        return agent.link_losses() if agent else (0, 0, 0)

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

        A guest that is stopped cannot say what its own end has lost since it was asked last; of a lab that was
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
