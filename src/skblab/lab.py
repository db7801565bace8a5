"""Lab: one running guest kernel with its private namespaces and link, and the clients on the other end."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, overload

from skblab.agent.rules import ignore
from skblab.agent.running import Running
from skblab.agent.streams import Hold, Probe
from skblab.errors import SkblabError, UsageError
from skblab.event import Hit
from skblab.guest.complaint import Complaint
from skblab.guest.hearing import ComplaintWatch
from skblab.guest.panic import GuestPanicked, PanicWatch
from skblab.guest.terminal import Terminal
from skblab.image.module import ensure_agent
from skblab.life import LabLife
from skblab.policy import LEASE_S, Decide, Policy
from skblab.rule import Inside, Occurrence, Rule
from skblab.serve import start_commands
from skblab.trace.tracer import Tracer, TraceSpec

if TYPE_CHECKING:
    from skblab.debugger.session import Debugger

InForce = TypeVar("InForce", bound="Running | Hold | Probe | Policy")


class Lab(LabLife):
    """Boot a guest kernel on a private link; end it, and everything in it, on leaving.

    ::

        with Lab(root="host") as lab:
            lab.run(["ping", "-c", "1", "guest"])

    :param name: the lab's name; one lab a name. Default: one of its own
    :param spec: what to boot; or *fields*: LabSpec's, by keyword
    :param opened: the image that they name, where it is open already

    Entering raises ImageMissing, LabNameTaken, MissingPrerequisite, BootFailed, DiskError, DiskInUse.
    """

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

    @property
    def terminal(self) -> Terminal | None:
        """The first of the guest's virtual consoles, or None."""
        return next(iter(self.terminals), None)

    def rule(self, rule: Rule | str, report: Callable[[Hit], object] = ignore) -> Running:
        """Put a rule in force; close it to end it. *report* is called for each packet that met it.

        :raises RuleError: it cannot be parsed
        :raises UnknownFunction: there is no such function
        :raises UnsupportedVerdict: the verdict is not sound there
        """
        return self._begun(Running(self._ready_agent(), rule if isinstance(rule, Rule) else Rule.parse(rule), report))

    def hold(
        self,
        function: str,
        filter: str = "",  # noqa: A002
        *,
        occurrence: Occurrence | None = None,
        inside: Inside | None = None,
        report: Callable[[Hit], object] = lambda _: None,
    ) -> Hold:
        """Hold packets that enter a function, while the kernel runs on. Use in a ``with``.

        :param filter: which packets: pcap-filter(7), and conditions
        :param inside: only inside these calls of another function
        :param report: called for each, as that of ``rule()``
        """
        rule = Rule(function, "hold", occurrence or Occurrence(), filter, inside)
        return self._begun(Hold(self._ready_agent(), rule, report))

    def probe(self, function: str, filter: str = "", *, occurrence: Occurrence | None = None) -> Probe:  # noqa: A002
        """See packets where they enter a function. Use in a ``with``."""
        return self._begun(Probe(self._ready_agent(), Rule(function, "trace", occurrence or Occurrence(), filter)))

    def _begun(self, one: InForce) -> InForce:
        """Note what was put in force; here it is the caller's to end it."""
        return one

    def ask_at_end(self, undone: Callable[[], Sequence[str]]) -> None:
        """Ask then what was not done, in words. Nobody does here; a lab in a test does."""

    @overload
    def on(
        self, function: str, filter: str = ..., *, occurrence: Occurrence | None = ..., lease_s: float = ...
    ) -> Callable[[Decide], Policy]: ...
    @overload
    def on(
        self, function: str, filter: str, decide: Decide, *, occurrence: Occurrence | None = ..., lease_s: float = ...
    ) -> Policy: ...
    def on(
        self,
        function: str,
        filter: str = "",  # noqa: A002
        decide: Decide | None = None,
        *,
        occurrence: Occurrence | None = None,
        lease_s: float = LEASE_S,
    ) -> Policy | Callable[[Decide], Policy]:
        """Have a Python function decide about each packet that enters a kernel function. Without *decide*: a decorator.

        ::

            @lab.on("icmp_rcv", "icmp")
            def lose_large(packet):
                return "drop" if len(packet.packet.data) > 500 else None

        *decide* gets a HeldPacket, on a thread of the policy's own, and returns a verdict as a rule writes it ("drop",
        "delay 20ms", "duplicate", "edit ip.ttl=3", "hold"), or None: the packet goes on. So does a packet about which
        it raises or does not decide in time. The policy ends with its ``with``, its ``close()``, or the lab.

        :param filter: which packets: pcap-filter(7), and conditions
        :param lease_s: how long a packet waits for a decision
        :raises UnknownFunction: there is no such function
        :raises UnsupportedVerdict: a packet cannot be held there
        """
        rule = Rule(function, "hold", occurrence or Occurrence(), filter)
        if decide is None:
            return lambda decide: self._policy(rule, decide, lease_s)
        return self._policy(rule, decide, lease_s)

    def _policy(self, rule: Rule, decide: Decide, lease_s: float) -> Policy:
        policy = Policy(self._ready_agent(), rule, decide, lease_s)
        try:
            self._stay().callback(policy.close)
            self.check_open()  # else nobody calls that
        except BaseException:
            with suppress(SkblabError):
                policy.close()
            raise
        return self._begun(policy)

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
        """Trace packets through the kernel's functions in a ``with``; afterwards ``trace()`` returns the trace.

        The parameters are the fields of ``TraceSpec``.

        :raises UnknownFunction: a pattern names no function
        :raises TraceError: a field does not exist, or the file cannot be written
        """
        spec = TraceSpec(patterns, calls, filter, fields, returns, to, about or {})
        return Tracer(self._ready_agent(), self.image, spec)

    def on_complaint(self, callback: Callable[[Complaint], object]) -> ComplaintWatch:
        """Call *callback*, from a thread of its own, with each of ``new_complaints``; close what is returned.

        :raises MissingPrerequisite: this user may have no more inotify instances
        """
        watch = ComplaintWatch(self.console, callback, skip=self._complaints_before)
        self._stay().callback(watch.close)
        return watch

    def on_panic(self, callback: Callable[[GuestPanicked], object]) -> PanicWatch:
        """Call *callback*, from a thread of its own, when the guest's kernel panics; close what is returned.

        If it has panicked already, *callback* is called at once.
        """
        watch = self._running.guest.on_panic(callback)
        self._stay().callback(watch.close)
        return watch

    def serve(self, command: str) -> None:
        """Start a shell command line in the guest; return when it listens on a TCP port. It runs until the lab ends.

        :raises GuestCommandFailed: it has ended before
        :raises Timeout: it has done neither in time
        """
        start_commands(self.guest, self._ready_agent(), [command], self._nodes)

    def debugger(self) -> "Debugger":
        """Return a gdb session on the guest kernel; entering it attaches."""
        from skblab.debugger.session import Debugger  # noqa: PLC0415 - few labs have one

        self.check()
        return Debugger(self.image, self.guest, self.namespaces)

    def stop_on_rules(self, debugger: "Debugger") -> int:
        """Let gdb stop the kernel wherever a rule's verdict is "stop"; return the stop's number."""
        agent = self._ready_agent()
        return debugger.set_agent_stop(agent.channel.stop_address, ensure_agent(self.image.path))

    def gdb_prompt(
        self, commands: Sequence[str] = (), *, user_init: bool = False, attached: Callable[[], object] = lambda: None
    ) -> int:
        """Run gdb's prompt on standard input; return gdb's exit status when its user has left it.

        :param commands: gdb commands to run first
        :param user_init: read the user's ~/.gdbinit first
        :param attached: called when gdb has attached and the kernel is stopped; from boot, when the guest is ready
        :raises DebuggerError: gdb cannot attach
        :raises UsageError: the guest runs in virtual time
        """
        from skblab.debugger import prompt  # noqa: PLC0415 - as above

        if self.guest.clock.is_virtual:
            raise UsageError("a person at gdb's prompt takes real time", hint="without --time virtual")
        wanted = prompt.Wanted(tuple(commands), user_init, attached)
        if self.spec.from_boot:
            wanted = replace(wanted, booted=self._running.receive_one_by_one)
        return prompt.run(self.image, self.guest, self.namespaces, wanted, self._ready_agent)
