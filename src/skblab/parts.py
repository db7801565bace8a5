"""What a running lab consists of: its kernel, namespaces, console, terminals and agent; booted here, or joined."""

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from skblab.agent.channel import Channel
from skblab.agent.control import Agent
from skblab.branch import CannotBranch, File, Kernel, file_of
from skblab.clock import MOST_S, REAL, Clock, VirtualClock
from skblab.errors import GuestLost, SkblabError, Timeout, UsageError
from skblab.guest import initramfs, nodes, receive
from skblab.guest.boot import UBD, Boot, Guest
from skblab.guest.console import Console
from skblab.guest.diagnosis import too_little_memory, too_much_memory
from skblab.guest.modules import Module, append, check_parameters
from skblab.guest.stopped import StoppedClock
from skblab.guest.terminal import Terminal
from skblab.host import process, registry
from skblab.host.namespace import BranchedNamespaces, JoinedNamespaces, Namespaces
from skblab.host.waiting import wait
from skblab.image.image import Image
from skblab.image.store import image_of
from skblab.spec import HOST_ROOT, LabSpec

SECCOMPS_OWN = "wait_stub_done_seccomp"  # a function of kernels that can run programs so (os-Linux/skas/process.c)

# In virtual time, the age of a guest that is ready. ping takes a coarse clock that is 0 for one that it has not read
# (iputils, ping_common.c pinger()).
READY_AT_S = 1.0
ENDS_S = 0.3  # from the first file that a kernel's process has no more to its end


class Parts:
    """The parts of one lab. ``boot()`` or ``join()`` makes them, in this order, and leaves their ends on a stack.

    :param lost: returns the error for an agent that is gone
    """

    image: Image
    console: Console
    clock: Clock
    namespaces: Namespaces
    agent: Agent | None = None  # of a lab that was joined, None until take_agent()
    terminals: list[Terminal]
    guest: Guest

    def __init__(self, name: str, spec: LabSpec, lost: Callable[[], SkblabError]) -> None:
        self._name = name
        self._spec = spec
        self._lost = lost
        self._given: tuple[int, int, int] | None = None  # the agent of a lab in virtual time that was joined
        self.root = spec.root
        self._clock_file: File = (0, 0)  # of the guest's end, which is closed here
        self._socket_file: File = (0, 0)
        self._order: tuple[Kernel, bytes, int] | None = None
        self._nodes = spec.nodes

    def boot(self, stack: ExitStack, image: Image | None) -> None:
        """Boot a guest; *image* is the spec's, where it is open already.

        :raises ImageMissing, MissingPrerequisite, LabNameTaken, DiskError, DiskInUse, BootFailed: as they say
        :raises UsageError: a part does not go with this kernel, or a module has no such parameter
        """
        spec = self._spec
        self.image = image or image_of(spec.image_path, spec.series, spec.variant)
        modules, archive = self._check()
        self.console = Console()
        stack.callback(self.console.close)  # after the kernel's end, so that its last words are read
        self.clock, clock_sockets = self._make_clock(stack)
        clock_fds = tuple(one.fileno() for one in clock_sockets)
        self.namespaces = stack.enter_context(
            Namespaces(self._name, link=self._sound_links(), within=self.clock.is_virtual)
        )
        if modules:
            append(archive, modules, archive := registry.first_files(self._name))
        channel, guest_socket = Channel.make(spec.steps_bytes)
        if clock_sockets:
            self._clock_file, self._socket_file = file_of(clock_fds[0]), file_of(guest_socket.fileno())
        if isinstance(self.clock, VirtualClock):
            channel.keep_clock(self.clock)
        self.agent = Agent(channel, self.image, self._lost, spec.lease_s, self.clock, self._machines())
        stack.callback(self.agent.close)
        stack.enter_context(guest_socket)
        consoles = spec.consoles or 0 if spec.root or spec.disks else 0
        self.terminals = [Terminal.make(stack) for _ in range(consoles)]
        boot = Boot(
            agent_fds=(channel.memory_fd, guest_socket.fileno()),
            kernel=self.image.kernel,
            initramfs=archive,
            memory_mib=spec.memory_mib,
            timeout_s=spec.boot_timeout_s,
            extra=(*self._userspace(), *spec.kernel_arguments),
            root=str(spec.root_directory) if spec.root else "",
            disks=tuple(disk.file for disk in spec.parsed_disks()),
            stopped=spec.from_boot,
            terminal_fds=tuple(terminal.guest_fd for terminal in self.terminals),
            clock_fds=clock_fds,
            words=self._virtual_words() if clock_fds else (),
        )
        self.guest = Guest.boot(boot, self.namespaces, self.console, self.clock)
        stack.callback(self.guest.close)
        self._freeze(channel, frozen=spec.clock == "frozen")
        self._learn_modules({str(one.file): self.guest.module_sections.get(one.name, {}) for one in modules})
        if modules:
            check_parameters(modules, self.console.text())
        for terminal in self.terminals:
            terminal.hand_over()
        for one in (guest_socket, *clock_sockets):
            one.close()  # the guest has it now: when it closes its end, we see the end of the stream
        if not spec.from_boot:
            self.receive_one_by_one()
        if isinstance(self.clock, VirtualClock):
            self.agent.wait_ready()
            self.clock.run_until(READY_AT_S)
        stack.callback(self._end_kernel)

    def branch(self, stack: ExitStack, stem: "Parts") -> None:
        """Begin with a copy of another guest's kernel, which rests.

        :raises CannotBranch: it has what a copy cannot have
        """
        if not isinstance(stem.clock, VirtualClock) or stem.agent is None:
            raise CannotBranch("a lab that was joined has no branches")
        self.image, self.root, self.terminals = stem.image, stem.root, []
        stem.clock.rest()
        with process.undisturbed(), stem.clock.standing():
            self._copy(stack, stem, stem.clock, stem.agent.channel)
        self.guest.modules = stem.guest.modules

    def _copy(self, stack: ExitStack, stem: "Parts", stems_clock: VirtualClock, stems_channel: Channel) -> None:
        order, size = stem.order_for_copy(stems_channel)
        self.console = stem.console.like()
        stack.callback(self.console.close)
        ours, theirs = socket.socketpair()
        stack.enter_context(theirs)
        self.clock = stems_clock.like(ours)
        stack.callback(self.clock.close)
        namespaces = self.namespaces = stack.enter_context(BranchedNamespaces(stem.namespaces))
        channel, guest_socket = stems_channel.like()
        channel.keep_clock(self.clock)
        self.agent = Agent(channel, self.image, self._lost, self._spec.lease_s, self.clock, self._machines())
        stack.callback(self.agent.close)
        stack.enter_context(guest_socket)
        memory, requests, mconsole = namespaces.branch(size)
        given = [theirs.fileno(), self.console.writer, channel.memory_fd, guest_socket.fileno(), requests, mconsole]
        try:
            self._clock_file, self._socket_file = file_of(given[0]), file_of(given[3])
            requests_file = file_of(requests)
            number = stems_clock.branch(stem.guest.ask_to_branch, order, [memory, *given])
        except (GuestLost, Timeout, UsageError):
            raise
        except SkblabError as error:
            raise CannotBranch(error.what, found=error.found, hint=error.hint) from None
        finally:
            for descriptor in (memory, requests, mconsole):
                os.close(descriptor)
        pidfd, notify = namespaces.adopt(number)
        self.guest = Guest(
            self.namespaces, self.console, pidfd, notify, number, kernel=self.image.kernel, clock=self.clock
        )
        stack.callback(self.guest.close)
        self.guest.requests = requests_file
        for one in (guest_socket, theirs):
            one.close()  # as in boot()
        stack.callback(self._end_kernel)

    def order_for_copy(self, channel: Channel) -> tuple[bytes, int]:
        """Return the order for a copy of the kernel's process, as it is now, and the size of the guest's memory.

        :raises CannotBranch: the guest, or the lab, has what a copy cannot have
        """
        if channel.kept or self.terminals or self._spec.disks or any(map(UBD.match, self._spec.kernel_arguments)):
            raise CannotBranch("a lab that is kept, or has a disk or a console, has no branches")
        if channel.probes or channel.held:
            raise CannotBranch(f"lab {self._name} has a rule or a trace in force, or holds a packet, and cannot branch")
        ours = file_of(self.console.descriptor), file_of(channel.memory_fd)
        try:
            seen = Kernel(self.guest.pid)
            if self._order is None or self._order[0] != seen:
                files = self._clock_file, *ours, self._socket_file, self.guest.requests
                self._order = seen, *seen.order(self.image.functions, files)
        except (OSError, CannotBranch) as error:
            if wait([self.guest.pidfd], ENDS_S):  # its files go before it has an exit status
                raise self.guest.lost() from None
            if isinstance(error, CannotBranch):
                raise
            found = f"/proc/{self.guest.pid}: {error}"
            raise CannotBranch("the guest's kernel cannot be copied", found=found) from None
        return self._order[1:]

    def _make_clock(self, stack: ExitStack) -> tuple[Clock, tuple[socket.socket, ...]]:
        """Return the guest's clock, and the socket by which its kernel asks a virtual one."""
        if self._spec.time == "real":
            self._refuse_limits()
            return REAL, ()
        ours, theirs = socket.socketpair()
        stack.enter_context(theirs)
        clock = VirtualClock(ours, self._spec.most_s, self._spec.seed, self._spec.timeout_s)
        stack.callback(clock.close)
        return clock, (theirs,)

    def _refuse_limits(self) -> None:
        """Refuse the limits of virtual time in real time."""
        if self._spec.most_s != MOST_S:
            hint = "timeout 30 COMMAND; or --time virtual"
            raise UsageError("a limit of the guest's time is for virtual time", hint=hint)
        if self._spec.timeout_s is not None:
            raise UsageError(
                "a limit of this machine's time is for virtual time", hint="timeout 30 COMMAND; or --time virtual"
            )

    def _virtual_words(self) -> tuple[str, ...]:
        addresses = self.namespaces.addresses
        return nodes.words(nodes.nodes(self._nodes, addresses), addresses, self._spec.seed)

    def _machines(self) -> dict[str, list[str]]:
        """Return the addresses of the lab's machines, by their names."""
        addresses, links = self.namespaces.addresses, self.namespaces.guest_links
        there = {nodes.OWN: links[0].addresses if links else addresses.guest}
        there |= {node.name: node.addresses for node in nodes.nodes(self._nodes, addresses)}
        return {name: [one.partition("/")[0] for one in of_it] for name, of_it in there.items()}

    def _check(self) -> tuple[tuple[Module, ...], Path]:
        """Check what the guest is to have; return its modules and its first files."""
        spec, disks = self._spec, self._spec.parsed_disks()
        for disk in disks:
            disk.ready()
        for disk in disks[:1]:
            disk.check_root()
        refused = too_little_memory(spec.memory_mib, self.image.config_text) or too_much_memory(
            spec.memory_mib, Path("/proc/meminfo").read_text()
        )
        if refused:
            raise refused
        modules = spec.parsed_modules()
        for module in modules:
            module.check(self.image)
        return modules, initramfs.ensure(self.image.path)

    def _userspace(self) -> tuple[str, ...]:
        """Return the word by which the kernel runs the guest's programs as the spec wants it.

        :raises UsageError: this kernel has ptrace alone
        """
        wanted = self._spec.userspace
        if wanted == "ptrace" or not (wanted or self._spec.root == HOST_ROOT):
            return ()
        if self.image.functions.lookup(SECCOMPS_OWN):
            return ("seccomp=on" if wanted else "seccomp=auto",)
        if wanted:
            raise UsageError(
                f"{self.image.name} runs the guest's programs by ptrace alone",
                found=f"Linux {self.image.series}; seccomp came with 6.16",
                hint="--series 7.3, or without --userspace seccomp",
            )
        return ()

    def _sound_links(self) -> list[str]:
        """Return the links that the image's kernel can drive.

        A vector device without queues, as of a tap, locks a queue that does not exist (arch/um/drivers/vector_kern.c
        vector_poll(), 6.11 and later): without lockdep that does nothing, with lockdep it panics.
        """
        links = list(self._spec.link)
        if "CONFIG_LOCKDEP=y" not in self.image.config_text:
            return links
        if any("tap" in link.split(",") for link in links):
            raise UsageError(f"{self.image.name} checks its locks, and cannot drive a tap", hint="--link veth")
        return [f"{link},veth" for link in links] or ["veth"]

    def _end_kernel(self) -> None:
        """End the kernel before its terminals: UML frees a terminal's interrupt in an interrupt (irq.c free_irqs())."""
        if not self.namespaces.kept:
            self.namespaces.close()

    def _learn_modules(self, sections: dict[str, dict[str, int]]) -> None:
        """Add the functions of the modules that the guest has loaded: *sections* of each file's code by address."""
        self.guest.modules = sections
        if sections:
            loaded = [(Module(Path(file)), places) for file, places in sections.items()]
            self.image = self.image.with_functions(
                [function for module, places in loaded for function in module.functions(places)],
                lambda: {at: members for module, places in loaded for at, members in module.members(places).items()},
            )
            if self.agent:
                self.agent.knows(self.image)

    def join(self, stack: ExitStack) -> None:
        """Join a lab that is up.

        :raises NoSuchLab: there is no such lab
        """
        namespaces = stack.enter_context(JoinedNamespaces(self._name))
        kernel_pidfd, console_fd, notify_fd, *terminals = namespaces.fds
        self.terminals = [Terminal(descriptor, stack) for descriptor in terminals]
        self.namespaces, about = namespaces, namespaces.about
        self.image = Image.open(Path(about["image"]))
        self.console = Console(console_fd)
        stack.callback(self.console.close)
        self.clock = self._join_clock(stack)
        self.guest = Guest(
            namespaces, self.console, kernel_pidfd, notify_fd, about["pid"], kernel=self.image.kernel, clock=self.clock
        )
        stack.callback(self.guest.close)
        self._learn_modules(about.get("modules", {}))
        self.guest.frozen = about["frozen"]
        self.root, self._nodes = about["root"], about.get("nodes", ())

    def _join_clock(self, stack: ExitStack) -> Clock:
        """Return the guest's clock; in virtual time it comes with the agent, to one controller at a time.

        :raises LabBusy: another controller has it
        """
        assert isinstance(self.namespaces, JoinedNamespaces)
        if not self.namespaces.about["virtual"]:
            self._refuse_limits()
            return REAL
        self._given, (clock_fd,) = self.namespaces.agent()
        clock = VirtualClock(socket.socket(fileno=clock_fd), self._spec.most_s, limit_s=self._spec.timeout_s)
        stack.callback(clock.close)
        return clock

    def take_agent(self, stack: ExitStack) -> Agent:
        """Return the agent of a lab that was joined; its end is left on *stack*.

        :raises LabBusy: another controller has it
        """
        assert isinstance(self.namespaces, JoinedNamespaces)
        memory_fd, socket_fd, farewells = self._given or self.namespaces.agent()[0]
        channel = Channel.take_over(memory_fd, socket_fd, farewells, self.clock)
        self._freeze(channel, frozen=self.guest.frozen)
        self.agent = Agent(channel, self.image, self._lost, self._spec.lease_s, self.clock, self._machines())
        stack.callback(self.agent.close)
        return self.agent

    def _freeze(self, channel: Channel, *, frozen: bool) -> None:
        """Let the guest's clock stand still, or not, while gdb has stopped its kernel."""
        self.guest.frozen = frozen
        if frozen:
            channel.stopped_ns = StoppedClock(self.guest.pid, self.image.kernel).read

    def receive_one_by_one(self) -> None:
        """Let the guest receive packets one by one (``guest.receive``).

        :raises GuestLost: the guest kernel is gone
        """
        try:
            receive.one_by_one(self.guest.pid, self.image.functions)
        except OSError:
            raise self.guest.lost() from None

    def keep(self, channel: Channel) -> None:
        """Let the lab outlive this process."""
        descriptors = (
            self.console.descriptor,
            channel.memory_fd,
            channel.socket.fileno(),
            *(terminal.fd for terminal in self.terminals),
        )
        about = {
            "image": str(self.image.path),
            "modules": self.guest.modules,
            "frozen": self.guest.frozen,
            "virtual": self.clock.is_virtual,
            "root": self._spec.root,
            "nodes": self._nodes,
        }
        self.namespaces.keep((*descriptors, self.clock.fileno()) if self.clock.is_virtual else descriptors, about)
        channel.kept = True
