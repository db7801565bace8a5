"""The controller's side of a lab's namespaces: start and end them, ask process 1, run programs inside."""

import contextlib
import errno
import json
import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from skblab.errors import GuestLost, LabBusy, MissingPrerequisite, SkblabError, Timeout, UsageError
from skblab.host import lab_init, links, nursery, process, registry
from skblab.host.links import Addresses
from skblab.host.sockets import LabSocket
from skblab.host.waiting import wait

log = logging.getLogger(__name__)

START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 10.0
DESCRIPTORS = 24  # a lab keeps 12 open here, and a few more while it starts
KINDS = {"user": "user", "mnt": "mount", "pid": "PID", "net": "network", "ipc": "IPC"}
IN_A_CONTAINER = "in a container: docker run --privileged, or --security-opt seccomp=unconfined; skblab doctor"
LIMITS = {
    errno.EMFILE: ("a lab's first process may open no more files", "ulimit -n 1024"),
    errno.ENFILE: ("this machine has no more open files", "sysctl -w fs.file-max=1000000   (as root)"),
    errno.ENOMEM: ("a lab's first process gets no memory", "ulimit -v unlimited; free -m"),
}


@dataclass(frozen=True)
class GuestLink:
    """One of the guest's devices: its kind of link, its addresses, and its descriptor unless process 1 has it."""

    kind: str
    addresses: tuple[str, ...]
    fd: int | None = None


def _close_all(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class _Conversation:
    """Who asks process 1: one thread at a time, and each gets the answer to what it has asked."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.owed = 0  # answers that have not come, or not been read: each comes before the next


class Namespaces:
    """Private user, mount, IPC, PID and network namespaces with the host side of a link in them.

    Use as a context manager: leaving it ends every process inside. *link* is ``"tap"``, ``"veth"`` or ``"auto"`` (a
    tap if this user may open /dev/net/tun), or several of them in the grammar of ``links``. With *within*, the link and
    the host side are in the guest, in virtual time.

    :raises MissingPrerequisite: this machine forbids a namespace, a mount or the link
    :raises LabNameTaken: another lab has the name
    """

    def __init__(self, name: str, *, link: str | Sequence[str] = "auto", within: bool = False) -> None:
        self.name = name
        self._within = within
        self._wanted = links.parse([link] if isinstance(link, str) else link)
        first = self._wanted[0]
        self.device = first.name
        self.addresses = first.addresses
        self.switch = first.on  # the lab whose host side this lab shares; "": it has its own
        self.guest_links: list[GuestLink] = []
        self.link = ""
        self.why_not_tap = ""
        self._control: socket.socket | None = None
        self._conversation = _Conversation()
        self._lock = -1
        self.kept = False  # the lab outlives this process
        self.has_branch = False
        self.pidfd = -1
        self.pid = 0

    def __enter__(self) -> Self:
        process.have_room(DESCRIPTORS)
        self._lock = registry.claim(self.name)
        try:
            with process.undisturbed():
                self._start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _start(self) -> None:
        order = {
            "hosts": self.addresses.hosts_file(),
            "link": "none" if self._wanted[0].on or self._within else self._wanted[0].kind,
            "device": self.device,
            "addresses": self.addresses.host,
        }
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(START_TIMEOUT_S)
        with theirs:
            self.pidfd = nursery.first_process(theirs)
        if self.pidfd >= 0:
            self.pid = max(process.pid_of(self.pidfd), 0)  # -1: it has ended
            registry.record_init(self._lock, self.pid)
        with contextlib.suppress(ConnectionError):  # it has ended: its last words come below
            socket.send_fds(self._control, [json.dumps(order).encode()], [self._lock])
        reply, _ = self._receive("namespaces and link")
        self.link, self.why_not_tap = reply["link"], reply["why_not_tap"]
        for wanted in () if self._within else self._wanted:
            self.guest_links.append(self._guest_link(wanted))

    def _guest_link(self, wanted: links.Wanted) -> GuestLink:
        if wanted.on:
            with JoinedNamespaces(wanted.on) as other:
                reply, (fd,) = other.request("plug", kind=wanted.kind, name=self.name, addresses=wanted.addresses.guest)
                return GuestLink(reply["link"], tuple(reply["addresses"]), fd)
        if not self.guest_links:
            return GuestLink(self.link, wanted.addresses.guest)
        reply, (fd,) = self.request("link", kind=wanted.kind, device=wanted.name, addresses=wanted.addresses.host)
        return GuestLink(reply["link"], wanted.addresses.guest, fd)

    def booted(self) -> None:
        """Close our copies of the guest's link descriptors, so that the links end with the guest."""
        for link in self.guest_links:
            if link.fd is not None:
                os.close(link.fd)
        self.guest_links = []

    def _receive(self, what: str) -> tuple[dict[str, Any], list[int]]:
        data, fds = self._receive_any(what)
        return self._understand(data), fds

    def _receive_any(self, what: str) -> tuple[bytes, list[int]]:
        """Return the next answer of process 1, whatever was asked for."""
        control = self._open_control()
        try:
            data, fds, _, _ = socket.recv_fds(control, lab_init.MESSAGE_BYTES, lab_init.DESCRIPTORS)
        except TimeoutError:
            raise Timeout(
                f"lab {self.name}: its first process did not answer in time", found=f"asked for: {what}"
            ) from None
        except OSError as error:
            self._raise_unless_gone(error)
            data, fds = b"", []
        if not data:
            raise GuestLost(f"lab {self.name}: its first process is gone", found=f"asked for: {what}")
        return data, list(fds)

    @staticmethod
    def _understand(data: bytes) -> dict[str, Any]:
        reply: dict[str, Any] = json.loads(data)
        if "error" in reply:
            raise _explain(reply)
        return reply

    def request(self, op: str, fds: Sequence[int] = (), **arguments: object) -> tuple[dict[str, Any], list[int]]:
        """Send request *op* to process 1 (see ``lab_init.LabInit``); return its answer and its descriptors.

        :raises GuestLost: process 1 is gone
        :raises UsageError: a copy of this lab's kernel has it
        """
        if self.has_branch:
            raise UsageError(
                f"lab {self.name} has a branch, and nothing can be asked of it until that is left",
                found=f"asked for: {op}",
            )
        return self._ask(op, fds, arguments)

    def lend(self) -> tuple[socket.socket, _Conversation]:
        """Give process 1 to a copy of this lab's kernel, until ``has_branch`` is set to False again.

        :raises UsageError: another has it
        """
        if self.has_branch:
            raise UsageError(f"lab {self.name} has a branch", hint="leave that first: one at a time")
        control = self._open_control()
        self.has_branch = True
        return control, self._conversation

    def abandon(self) -> None:
        """Give process 1 up: it does not answer."""
        control, self._control = self._control, None
        if control is not None:
            control.close()

    def _ask(self, op: str, fds: Sequence[int], arguments: Mapping[str, object]) -> tuple[dict[str, Any], list[int]]:
        control = self._open_control()
        message = json.dumps({"op": op, **arguments}).encode()
        if len(message) > lab_init.MESSAGE_BYTES:
            raise UsageError(f"lab {self.name}: a request of {len(message)} bytes: {op}",
                             found=f"{lab_init.MESSAGE_BYTES} at most")  # fmt: skip
        descriptors: list[int] = []
        try:
            with process.undisturbed(only_once=True), self._conversation.lock:
                try:
                    socket.send_fds(control, [message], list(fds))
                except OSError as error:
                    self._raise_unless_gone(error)
                    raise GuestLost(f"lab {self.name}: its first process is gone", found=f"asked for: {op}") from None
                self._conversation.owed += 1
                while self._conversation.owed:  # who asked for those before did not wait for them
                    _close_all(descriptors)
                    data, descriptors = self._receive_any(op)
                    self._conversation.owed -= 1
            return self._understand(data), descriptors
        except BaseException:
            _close_all(descriptors)
            raise

    def _open_control(self) -> socket.socket:
        """Return the control socket.

        :raises UsageError: the lab is not running, or another thread has closed it
        """
        if (control := self._control) is None:
            raise UsageError(f"lab {self.name} is not running")
        return control

    def _raise_unless_gone(self, error: OSError) -> None:
        """Raise an error of the control socket, unless process 1 is gone, or another thread has closed the lab."""
        control = self._control
        if control is not None and control.fileno() >= 0 and not isinstance(error, ConnectionError):
            raise error

    def drops(self) -> tuple[int, int]:
        """Return how many frames the host side has dropped on all links: for guests, and from them.

        :raises GuestLost: process 1 is gone
        """
        if self._within:
            return 0, 0
        for_guests, from_guests = self.request("drops")[0]["drops"]
        return for_guests, from_guests

    def socket(self, family: int, kind: int, protocol: int = 0) -> socket.socket:
        """Open a socket in the lab's network namespace for this process."""
        _, fds = self.request("socket", family=int(family), kind=int(kind), protocol=int(protocol))
        return LabSocket(fds[0], {"guest": self.addresses.guest, "host": self.addresses.host})

    def ip(self, *lines: str) -> None:
        """Run lines of ``ip -batch`` on the host side."""
        self.request("ip", program="ip", lines=lines)

    def shorten_queue(self, packets: int) -> None:
        """Limit the tap's queue to *packets* for a guest that does not read; beyond that, senders get ENOBUFS.

        A qdisc would queue more and drop silently; without one, the tap's error reaches sendto(2)
        (drivers/net/tun.c tun_net_xmit()).
        """
        self.request("ip", program="tc", lines=[f"qdisc replace dev {self.device} root noqueue"])
        self.ip(f"link set {self.device} txqueuelen {packets}")

    def command(self, argv: Sequence[process.Argument]) -> list[str]:
        """Return the command that runs *argv* on the host side; start it with ``pass_fds=[self.pidfd]``."""
        return [*process.stand_in(f"m.enter({self.pidfd}, {os.getpid()}, sys.argv[1:])"), *process.words_of(argv)]

    def keep(self, fds: Sequence[int], about: dict[str, object]) -> None:
        """Let the lab outlive this process; process 1 keeps *fds* (see ``lab_init``) for controllers that join."""
        with registry.listen(self.name, self._lock) as listener:
            who = {"pid": os.getpid(), "command": registry.command_line()}
            addresses = [self.addresses.guest, self.addresses.host]
            self.request(
                "keep",
                [listener.fileno(), *fds],
                about=about | {"link": self.link, "addresses": addresses, "switch": self.switch},
                who=who,
            )
        self.kept = True

    def close(self) -> None:
        """End every process of the lab and wait for that, unless the lab is kept; safe to call twice."""
        with process.undisturbed():
            self._close()

    def _close(self) -> None:
        if self._control is None:
            if self._lock >= 0:
                registry.forget(self.name, self._lock)
                self._lock = -1
            return
        self.booted()
        control, self._control = self._control, None
        control.close()
        if self.kept:
            os.close(self.pidfd)
            os.close(self._lock)  # process 1 has it too
            self._lock = -1
            return
        if self.pidfd >= 0:  # it could be started
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            if not wait([self.pidfd], END_TIMEOUT_S):
                log.warning("lab %s: process %d has not ended after %g s", self.name, self.pid, END_TIMEOUT_S)
            os.close(self.pidfd)
            self.pidfd = -1
        registry.forget(self.name, self._lock)
        self._lock = -1


class BranchedNamespaces(Namespaces):
    """The namespaces of a lab, for a copy of its kernel; leaving them ends that one, and the copies of it."""

    def __init__(self, stem: Namespaces) -> None:
        super().__init__(stem.name, within=True)
        self._stem = stem
        self._depth = 0
        self.pid, self.pidfd, self.link = stem.pid, stem.pidfd, stem.link
        self.addresses, self.switch = stem.addresses, stem.switch

    def __enter__(self) -> Self:
        self._control, self._conversation = self._stem.lend()
        return self

    def branch(self, size: int) -> list[int]:
        """Return descriptors for a copy of the kernel: its memory, its requests, its mconsole.

        :param size: of its memory, in bytes
        """
        reply, descriptors = self.request("branch", size=size)
        self._depth = reply["depth"]
        return descriptors

    def adopt(self, number: int) -> list[int]:
        """Have process 1 serve a copy of the kernel, which is its process *number*; return a pidfd and a socket."""
        return self.request("adopt", pid=number)[1]

    def _close(self) -> None:
        if self._control is None:
            return
        try:
            if self._depth:
                self._ask("prune", (), {"depth": self._depth})
        except Timeout:  # nobody knows what process 1 has of the branch
            self._stem.abandon()
        except (SkblabError, OSError):  # process 1 is gone
            log.debug("lab %s: its branch went with it", self.name)
        self._control, self._stem.has_branch = None, False

    def abandon(self) -> None:
        """Give process 1 up."""
        super().abandon()
        self._stem.abandon()


class JoinedNamespaces(Namespaces):
    """The namespaces of a running lab, for one more controller; leaving them ends nothing.

    ``about`` is the description by the lab's first controller, ``fds`` are the descriptors that process 1 keeps.

    :param to_end: accept a lab of any version of skblab, because it will only be ended
    :raises NoSuchLab: no such lab
    :raises SkblabError: another version of skblab has started it
    """

    def __init__(self, name: str, *, to_end: bool = False) -> None:
        super().__init__(name)
        self._to_end = to_end

    def __enter__(self) -> Self:
        self._control = registry.connect(self.name)
        self._control.settimeout(START_TIMEOUT_S)
        self.about, (self.pidfd, *self.fds) = self.request("join")
        self.pid = process.pid_of(self.pidfd)
        if self._to_end:
            return self
        if not self.is_of_this_version:
            self.close()
            for descriptor in self.fds:
                os.close(descriptor)
            raise SkblabError(
                f"lab {self.name} was started by another version of skblab",
                found=f"it speaks version {self.about.get('version')}, and this skblab {lab_init.VERSION}",
                hint=f"skblab down {self.name}; skblab up {self.name}",
            )
        self.link = self.about["link"]
        self.addresses = Addresses(*map(tuple, self.about["addresses"]))
        self.switch = self.about["switch"]
        return self

    @property
    def is_of_this_version(self) -> bool:
        """Whether a skblab with this protocol version has started the lab."""
        return self.about.get("version") == lab_init.VERSION

    def agent(self) -> tuple[tuple[int, int, int], list[int]]:
        """Return the agent's memory, its socket, and its number of earlier controllers; they are ours until we leave.

        In virtual time, the list has the connection of the guest's clock.

        :raises LabBusy: another controller has them
        """
        who = {"pid": os.getpid(), "command": registry.command_line()}
        reply, fds = self.request("agent", who=who)
        if user := reply.get("busy"):
            raise LabBusy(
                f"lab {self.name}: another command has its agent",
                found=f"pid {user['pid']}: {user['command']}",
                hint=f"wait until it has ended, or end it: kill {user['pid']}",
            )
        return (fds[0], fds[1], reply["farewells"]), fds[2:]

    def end(self) -> None:
        """End the lab, even while others use it; return when it is gone."""
        assert self._control
        with contextlib.suppress(GuestLost):
            self.request("end")
        if not wait([self.pidfd], END_TIMEOUT_S):
            raise Timeout(f"lab {self.name} has not ended within {END_TIMEOUT_S:g} s", found=f"pid {self.pid}")
        registry.forget(self.name, registry.claim(self.name))

    def _close(self) -> None:
        if self._control is not None:
            control, self._control = self._control, None
            control.close()
            os.close(self.pidfd)


def _explain(reply: dict[str, Any]) -> SkblabError:
    """Return the error for a refused step, with a hint."""
    step, detail = reply["error"], reply["detail"]
    answers: dict[str, SkblabError] = {
        lab_init.BAD_REQUEST: SkblabError(
            "the lab's first process refuses a request",
            found=detail,
            hint="where another version of skblab has started the lab: skblab down NAME; skblab up NAME",
        ),
        lab_init.NO_COMMANDS: Timeout(
            "the guest takes no more commands", hint="a kernel that gdb has stopped starts nothing: continue it"
        ),
        "no link": UsageError(detail, hint="a lab with a link of its own: skblab up LAB"),
        "tap": MissingPrerequisite(
            "cannot make a tap", found=detail, hint="--link veth, or: chmod 666 /dev/net/tun   (as root)"
        ),
    }
    if step in answers:
        return answers[step]
    where = detail if step == detail else f"{step}: {detail}"
    if reply["errno"] == errno.EAGAIN:
        return process.no_more_processes(where)
    if reply["errno"] in LIMITS:
        what, hint = LIMITS[reply["errno"]]
        return MissingPrerequisite(what, found=where, hint=hint)
    if step.startswith("user namespace"):
        return _no_namespaces(reply["errno"], where)
    return MissingPrerequisite(f"this machine refused a part of the lab: {step}", found=detail, hint="skblab doctor")


def _no_namespaces(number: int, detail: str) -> MissingPrerequisite:
    """Return the error for a refused unshare(2), with the sysctl that refuses it."""
    if not Path("/proc/self").exists():
        return MissingPrerequisite(
            "a lab needs /proc", found="it is not mounted here", hint="mount -t proc proc /proc   (as root)"
        )
    if number == errno.ENOSPC:  # namespaces(7)
        settings = {f"user.max_{kind}_namespaces": "0" for kind in ("user", "mnt", "pid", "net", "ipc")}
        better = "15000"
    else:
        settings = {"kernel.unprivileged_userns_clone": "0", "kernel.apparmor_restrict_unprivileged_userns": "1"}
        better = ""
    for name, bad in settings.items():
        path = Path("/proc/sys", name.replace(".", "/"))
        if path.exists() and path.read_text().strip() == bad:
            kind = name.removeprefix("user.max_").partition("_")[0] if better else "user"
            return MissingPrerequisite(
                f"this machine does not let you make a {KINDS[kind]} namespace", found=f"{path} is {bad}",
                hint=f"sysctl -w {name}={better or 1 - int(bad)}   (as root)",
            )  # fmt: skip
    if better:
        return MissingPrerequisite(
            "this machine lets you make no more namespaces", found=detail,
            hint="end what you no longer need: skblab down --all; or raise the limits: sysctl user   (as root)",
        )  # fmt: skip
    return MissingPrerequisite("this machine does not let you make a user namespace", found=detail, hint=IN_A_CONTAINER)
