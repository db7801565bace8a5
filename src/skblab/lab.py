"""Lab: one running guest kernel with its private namespaces and link, and the clients on the other end."""

import functools
import itertools
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from skblab.agent.abi import Hit
from skblab.agent.channel import STEPS_BYTES, Channel
from skblab.agent.control import DEFAULT_LEASE_S, Agent
from skblab.agent.held import MOST_DELAY_S
from skblab.agent.holds import Hold, Probe, Running
from skblab.debugger import prompt
from skblab.debugger.session import Debugger
from skblab.errors import GuestLost, LabBusy, SkblabError, Timeout, UsageError
from skblab.guest import initramfs, receive
from skblab.guest.boot import Boot, Guest
from skblab.guest.complaint import Complaint, when_left
from skblab.guest.console import Console
from skblab.guest.diagnosis import too_little_memory
from skblab.guest.disk import Disk
from skblab.guest.hearing import ComplaintWatch
from skblab.guest.losses import Losses
from skblab.guest.modules import Module, append
from skblab.guest.panic import GuestPanicked, PanicWatch
from skblab.guest.terminal import Terminal
from skblab.host import process, registry
from skblab.host.namespace import JoinedNamespaces, Namespaces
from skblab.image.image import Image
from skblab.image.module import ensure_agent
from skblab.image.store import find_image
from skblab.packet import Packet
from skblab.record.tracer import Tracer
from skblab.rule import Occurrence, Rule
from skblab.serve import start_commands

MOST_CONSOLES = 15  # arch/um/drivers/stdio_console.c MAX_TTYS, less the kernel's own
MINIMUM_STEPS_BYTES, MOST_STEPS_BYTES = 1 << 20, 1 << 32

FROM_ENTERING = {"console", "guest", "image", "namespaces", "terminals"}
HOW_TO_ENTER = "with Lab() as lab: ..."

_numbers = itertools.count(1)


class Lab:
    """Boot a guest kernel on a private link; end it, and everything in it, on leaving.

    ::

        with Lab() as lab:
            lab.run(["ping", "-c", "1", "guest"])

    :param name: the lab's name; one lab a name. Default: one of its own
    :param image: an image, or the directory of one. Default: the newest of *series* and *variant*
    :param series: kernel series, ``"6.12"`` or ``"6.1"``
    :param variant: which set of kernel options
    :param link: ``"tap"``, ``"veth"``, or ``"auto"``: a tap where this user may open /dev/net/tun; several, each in the
        words of ``--link``: ``["lan,tap", "wan,guest=10.0.0.1/24,host=10.0.0.2/24", "on=otherlab"]``
    :param memory_mib: the guest's memory
    :param kernel_arguments: more words for the kernel's command line
    :param boot_timeout_s: how long the guest may take to say that it is ready

    :param root: a directory, or ``"host"`` for ``/``: the guest's programs see its files;
        what they write stays in memory
    :param disks: ``"IMAGE"``, ``"COW"`` or ``"COW,BACKING"``; the guest boots from the first
    :param modules: kernel modules to load first, ``"FILE.ko"`` or ``"FILE.ko,NAME=VALUE,..."``
    :param consoles: how many virtual consoles it has, each with a shell, or a login of the disk's; with a root
    :param commands: shell lines to run in the guest; the lab is ready when each listens on a TCP port
    :param steps_bytes: the memory between a trace's kernel and its file, a power of two
    :param lease_s: a held packet goes on by itself if nobody has decided on it after that time; 0: never
    :param from_boot: the kernel stands before its first instruction, until ``gdb_prompt()`` lets it go

    Entering raises ImageMissing, LabNameTaken, MissingPrerequisite, BootFailed, DiskError, DiskInUse.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        image: Image | Path | None = None,
        series: str = "6.12",
        variant: str = "default",
        link: str | Sequence[str] = "auto",
        memory_mib: int = 64,
        kernel_arguments: Sequence[str] = (),
        boot_timeout_s: float = 15.0,
        root: str = "",
        disks: Sequence[str] = (),
        consoles: int = 1,
        commands: Sequence[str] = (),
        modules: Sequence[str] = (),
        from_boot: bool = False,
        steps_bytes: int = STEPS_BYTES,
        lease_s: float = DEFAULT_LEASE_S,
    ) -> None:
        if root and disks:
            raise UsageError("a guest has one root: a directory or a disk", hint="without --root, or without --disk")
        if steps_bytes & (steps_bytes - 1) or not MINIMUM_STEPS_BYTES <= steps_bytes <= MOST_STEPS_BYTES:
            raise UsageError(
                f"a ring of {steps_bytes >> 20} MiB for a trace's steps",
                found=f"a power of two, {MINIMUM_STEPS_BYTES >> 20} to {MOST_STEPS_BYTES >> 20} MiB",
            )
        self._root = "/" if root == "host" else root and str(Path(root).resolve())
        if root and not Path(self._root).is_dir():
            raise UsageError(f"no such directory: {root}", hint='root="host", or a directory')
        if modules and from_boot:
            raise UsageError(
                "a kernel that stands still loads no modules", hint="without modules, or without --from-boot"
            )
        if commands and from_boot:
            raise UsageError("a kernel that stands still runs no commands", hint="without -g, or without --from-boot")
        if commands and not (root or disks):
            raise UsageError("a command in the guest needs a root file system", hint='root="host", or --root host')
        if not 0 <= consoles <= MOST_CONSOLES:
            raise UsageError(f"a guest has no {consoles} consoles", hint=f"{MOST_CONSOLES} at most")
        self.name = name or f"lab-{os.getpid()}-{next(_numbers)}"
        self._wanted_image = image
        self._series, self._variant = series, variant
        self._links = [link] if isinstance(link, str) else list(link)
        self._memory_mib = memory_mib
        self._kernel_arguments = tuple(kernel_arguments)
        self._boot_timeout_s = boot_timeout_s
        self._disks = tuple(Disk.parse(disk) for disk in disks)
        self._commands = tuple(commands)
        self._modules = tuple(Module.parse(module) for module in modules)
        self._consoles = consoles if root or disks else 0
        self._stack: ExitStack | None = None
        self._from_boot = from_boot
        self._steps_bytes = steps_bytes
        if not 0 <= lease_s <= MOST_DELAY_S:
            raise UsageError(f"a lease of {lease_s:g} s", found=f"0 (none) to {MOST_DELAY_S:g} s")
        self._lease_s = lease_s
        self._joins = False
        self._agent: Agent | None = None
        self._switch: JoinedNamespaces | None = None
        self._console: Console | None = None
        self._complaints_before = 0
        self._losses = self._losses_before = Losses()

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
        self._agent = self._console = self._switch = None
        self._losses = self._losses_before = Losses()
        self._pid, self._is_closed = os.getpid(), False
        with ExitStack() as stack:
            stack.callback(self._left)
            # Entered last, left first: clients end before the kernel they talk to.
            self._clients: list[process.Running] = []
            if self._joins:
                self._join(stack)
                stack.callback(self._end_clients)
            else:
                self._boot(stack)
                stack.callback(self._end_clients)
                if self._commands:
                    self.agent.wait_ready()
                    start_commands(self.guest, self.agent, self._commands)
            self._stack = stack.pop_all()
        return self

    def _boot(self, stack: ExitStack) -> None:
        match self._wanted_image:
            case Image() as image:
                self.image = image
            case None:
                self.image = find_image(self._series, self._variant)
            case path:
                self.image = Image.open(path)
        for disk in self._disks:
            disk.ready()
        for disk in self._disks[:1]:
            disk.check_root()
        if refused := too_little_memory(self._memory_mib, self.image.config_text()):
            raise refused
        for module in self._modules:
            module.check(self.image)
        archive = initramfs.ensure(self.image.path)
        self.console = self._console = Console()
        stack.callback(self.console.close)  # behind the kernel's end: its last words are read, too
        self.namespaces = stack.enter_context(Namespaces(self.name, link=self._sound_links()))
        if self._modules:
            append(archive, self._modules, archive := registry.first_files(self.name))
        channel, guest_socket = Channel.make(self._steps_bytes)
        self._agent = Agent(channel, self.image, self._why_lost, self._lease_s)
        stack.callback(self._agent.close)
        stack.enter_context(guest_socket)
        self.terminals = [Terminal.make(stack) for _ in range(self._consoles)]
        boot = Boot(
            agent_fds=(channel.memory_fd, guest_socket.fileno()),
            kernel=self.image.kernel,
            initramfs=archive,
            memory_mib=self._memory_mib,
            timeout_s=self._boot_timeout_s,
            extra=self._kernel_arguments,
            root=self._root,
            disks=tuple(disk.file for disk in self._disks),
            stopped=self._from_boot,
            terminal_fds=tuple(terminal.guest_fd for terminal in self.terminals),
        )
        self.guest = Guest.boot(boot, self.namespaces, self.console)
        stack.callback(self.guest.close)
        self._learn_modules(
            {str(module.file): self.guest.module_sections.get(module.name, {}) for module in self._modules}
        )
        for terminal in self.terminals:
            terminal.hand_over()
        guest_socket.close()  # the guest has it now: its end is then the end of the socket
        if not self._from_boot:
            self._receive_one_by_one()
        stack.callback(self._end_kernel)

    def _end_kernel(self) -> None:
        """End the kernel before its terminals: UML frees a terminal's interrupt in an interrupt (irq.c free_irqs())."""
        if not self.namespaces.kept:
            self.namespaces.close()

    def _learn_modules(self, sections: dict[str, dict[str, int]]) -> None:
        """Know the functions of modules that the guest has loaded: each one's file, and where its code lies."""
        self.guest.modules = sections
        if sections:
            self.image = self.image.with_functions(
                function for file, places in sections.items() for function in Module(Path(file)).functions(places)
            )
            if self._agent:
                self._agent.knows(self.image)

    def _join(self, stack: ExitStack) -> None:
        namespaces = stack.enter_context(JoinedNamespaces(self.name))
        kernel_pidfd, console_fd, notify_fd, *terminals = namespaces.fds
        self.terminals = [Terminal(descriptor, stack) for descriptor in terminals]
        self.namespaces, about = namespaces, namespaces.about
        self.image = Image.open(Path(about["image"]))
        self.console = self._console = Console(console_fd)
        stack.callback(self.console.close)
        self._complaints_before = len(self.complaints)
        self._losses_before = Losses(0, 0, *namespaces.drops())
        self.guest = Guest(namespaces, self.console, kernel_pidfd, notify_fd, about["pid"], kernel=self.image.kernel)
        stack.callback(self.guest.close)
        self._learn_modules(about.get("modules", {}))

    @property
    def agent(self) -> Agent:
        """The agent in the guest's kernel; of a lab that was joined, ours from the first time it is asked for.

        :raises LabBusy: another controller of this lab has it
        """
        if self._agent is None:
            self.check()
            assert self._stack
            assert isinstance(self.namespaces, JoinedNamespaces)
            self._agent = Agent(Channel.take_over(*self.namespaces.agent()), self.image, self._why_lost, self._lease_s)
            self._stack.callback(self._agent.close)
            cut, no_memory, refused = self._agent.link_losses()
            self._losses_before += Losses(cut, no_memory, 0, refused)
        return self._agent

    @property
    def terminal(self) -> Terminal | None:
        """The first of the guest's virtual consoles (``terminals`` has all), or None."""
        return next(iter(self.terminals), None)

    def keep(self) -> None:
        """Let the lab outlive this process: ``Lab.join(name)`` finds it, ``end()`` and ``skblab down`` end it."""
        channel = self._ready_agent().channel
        fds: tuple[int, ...] = (
            self.console.descriptor,
            channel.memory_fd,
            channel.socket.fileno(),
        )
        fds += tuple(terminal.fd for terminal in self.terminals)
        self.namespaces.keep(fds, {"image": str(self.image.path), "modules": self.guest.modules})
        channel.kept = True

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
        self._count_losses()
        self._is_closed = True
        stack.close()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            """Say of what a lab has once it runs that it does not run yet."""
            if name in FROM_ENTERING:
                raise UsageError(f"lab {self.name} has not been entered: it has no {name} yet", hint=HOW_TO_ENTER)
            raise AttributeError(f"'Lab' object has no attribute {name!r}")

    def popen(
        self,
        argv: Sequence[process.Argument],
        *,
        stdin: process.Stream = subprocess.DEVNULL,
        stdout: process.Stream = None,
        stderr: process.Stream = None,
        new_session: bool = False,
        pass_fds: Sequence[int] = (),
        env: dict[str, str] | None = None,
    ) -> process.Running:
        """Start a program on the host side, where the names ``guest`` and ``host`` resolve; it ends with the lab.

        Of a guest on another lab's switch, that is the other lab's host side, where each guest has its lab's name.

        :raises GuestLost: the guest kernel is gone
        :raises NoSuchLab: the other lab is gone
        """
        self.check()
        host_side = self._host_side()
        client = process.start(
            host_side.command(argv),
            env=env,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            new_session=new_session,
            pass_fds=[host_side.pidfd, *pass_fds],
        )
        self._clients = [*(one for one in self._clients if process.unfinished(one)), client]
        return client

    def run(
        self, argv: Sequence[process.Argument], *, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program on the host side to its end; return its status and its output as text.

        :raises subprocess.TimeoutExpired: it ran longer than *timeout_s*; it was killed
        """
        client = self.popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return process.finish(client, timeout_s=timeout_s)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> socket.socket:
        """Open a socket on the host side of the link for this process to use.

        Its ``connect()``, ``bind()`` and ``sendto()`` know the names ``guest`` and ``host``.
        """
        return self._host_side().socket(family, kind, protocol)

    def _host_side(self) -> Namespaces:
        """Return the namespaces of the host side; of a guest on another lab's switch they are that lab's.

        :raises NoSuchLab: that lab is gone
        """
        if not self.namespaces.switch:
            return self.namespaces
        if self._switch is None:
            assert self._stack
            self._switch = self._stack.enter_context(JoinedNamespaces(self.namespaces.switch))
        return self._switch

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

    def _sound_links(self) -> list[str]:
        """Return the links as the image's kernel bears them.

        A vector device without queues, as a tap makes it, locks what is not there (arch/um/drivers/vector_kern.c
        vector_poll(), from 6.11 on): nothing to a kernel whose locks are nothing, a panic with lockdep.
        """
        if "CONFIG_LOCKDEP=y" not in self.image.config_text():
            return self._links
        if any("tap" in link.split(",") for link in self._links):
            raise UsageError(f"{self.image.name} checks its locks, and bears no tap", hint="--link veth")
        return [f"{link},veth" for link in self._links] or ["veth"]

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
        return self._console.complaints() if self._console else ()

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
        if self._stack:
            self._count_losses()
        return self._losses - self._losses_before

    def excuse(self, losses: Losses) -> None:
        """Leave frames out of ``link_losses``: they were to be lost, and that is told otherwise."""
        self._losses_before += losses

    def _count_losses(self) -> None:
        with suppress(SkblabError, OSError):  # a lab that is going is not kept from it
            for_guest, from_guest = self.namespaces.drops()
            cut, no_memory, refused = self._agent.link_losses() if self._agent else (0, 0, 0)
            self._losses = Losses(cut, no_memory, for_guest, from_guest + refused)

    def on_complaint(self, told: Callable[[Complaint], object]) -> ComplaintWatch:
        """Call *told*, from a thread of its own, with each of ``new_complaints``; close what is returned.

        :raises MissingPrerequisite: this user may have no more inotify instances
        """
        self.check()
        assert self._stack
        watch = ComplaintWatch(self.console, told, skip=self._complaints_before)
        self._stack.callback(watch.close)
        return watch

    def _left(self) -> None:
        for tell in when_left:
            tell(self)

    def on_panic(self, told: Callable[[GuestPanicked], object]) -> PanicWatch:
        """Call *told*, from a thread of its own, when the guest's kernel panics; close what is returned.

        Of a lab that has panicked already, it is told at once.
        """
        self.check()
        assert self._stack
        watch = self.guest.on_panic(told)
        self._stack.callback(watch.close)
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
        self.check()
        holds, no_hold = self._holds_by_hand()
        how = functools.partial(
            prompt.run,
            self.image,
            self.guest,
            self.namespaces,
            commands=commands,
            user_init=user_init,
            holds=holds,
            no_hold=no_hold,
        )
        if not self._from_boot:
            return how(attached=attached)

        def booted() -> None:
            self._receive_one_by_one()
            attached()

        return how(booted=booted)

    def _holds_by_hand(self) -> tuple[prompt.Holds | None, str]:
        """Return how gdb's user holds packets; or None, and why not."""
        if self._from_boot:
            return None, "the kernel was attached to before it had booted, and the agent loads when it has"
        try:
            agent = self._ready_agent()
        except (LabBusy, Timeout) as error:
            return None, error.what
        return prompt.Holds(*agent.channel.by_hand, agent.release_by_hand), ""

    def _receive_one_by_one(self) -> None:
        try:
            receive.one_by_one(self.guest.pid, self.image.functions)
        except OSError:
            raise self.guest.lost() from None

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

    def _end_clients(self) -> None:
        for client in self._clients:
            process.end(client)
