"""The first process of a lab: makes the namespaces and the link, starts the kernel, and takes everything with it.

A program of its own that imports little (no subprocess, pathlib, typing: 60 ms here), for it starts with every lab and
stays as long. It is two processes: an *outer* one that makes the namespaces and waits, and the *inner* one that is
process 1 of the lab's PID namespace. When process 1 ends, for whatever reason, the kernel ends every process of the
namespace (pid_namespaces(7)), and with the last of them the network namespace, the tap and the mounts go: there is
nothing to clean up. It ends when its controller does (end of file on the control socket) and when the outer one does.

A control socket carries one JSON object a datagram, with file descriptors beside it: requests down, one reply each. A
lab that is told to outlive its controller listens for others, and keeps for them what they need of it.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from contextlib import suppress
from io import FileIO

from skblab.host.jail import (
    CLONE_NEWIPC,
    CLONE_NEWNET,
    CLONE_NEWNS,
    CLONE_NEWPID,
    LAB,
    MS_BIND,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_PRIVATE,
    MS_REC,
    PRIVATE,
    confine,
    mount,
    new_namespaces,
    prepare,
)
from skblab.host.link import Link, SetUpError, Switch, ip, libc, read_file, write_file
from skblab.host.waiting import wait

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing.TYPE_CHECKING without importing typing
    from typing import Any, NoReturn

    Answer = tuple[dict[str, Any], list[int]]

PR_SET_PDEATHSIG = 1
ADDR_NO_RANDOMIZE = 0x0040000

MESSAGE_BYTES = 1 << 16
DESCRIPTORS = 32  # beside a message, at most
DATAGRAMS = (
    512  # that wait for their reader (unix(7), max_dgram_qlen; 10 by default): UML drops an answer that does not
)
PANIC = b"\xbe\xba\xfe\xca\2\0\0\0\1\0\0\0"  # how a notification of one begins (arch/um/drivers/mconsole.h)
CONSOLE, AGENT_MEMORY, AGENT_SOCKET, TERMINAL = range(4)  # of what is kept for other controllers
FAREWELL = 1  # kernel/agent/agent_abi.h
# Of requests and answers, of what is kept, and of what is shared with the agent: a lab may outlive the skblab that has
# started it, and be joined by a newer one.
VERSION = 2
BAD_REQUEST, NO_COMMANDS = "request", "no commands"

# gai.conf(5), as RFC 6724 section 2.1 has it for private addresses: "ping guest" is the ping of the textbooks.
PREFER_IP4 = "precedence ::ffff:0:0/96 100\nprecedence ::1/128 50\nprecedence ::/0 40\n"


def private_mounts(hosts: str) -> None:
    """Give the lab a /proc of its own, private files in memory, and names: guest and host, each IPv4 first.

    The directory to mount over must exist on every machine. /tmp would hide files that people hand to their clients;
    /dev/shm is where UML puts the guest's memory anyway (arch/um/os-Linux/mem.c).
    """
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("tmpfs", LAB, "tmpfs", MS_NOSUID | MS_NODEV, "mode=0700")
    prepare()
    hosts = f"{_machines_hosts().rstrip()}\n{hosts}\n"
    for name, text in (("hosts", hosts), ("gai.conf", PREFER_IP4)):
        if os.path.isfile(f"/etc/{name}"):  # noqa: PTH113
            write_file(f"{LAB}/{name}", text)
            mount(f"{LAB}/{name}", f"/etc/{name}", "", MS_BIND)


def _machines_hosts() -> str:
    """Return /etc/hosts, as far as this user may read it and it is a file."""
    path = "/etc/hosts"
    return read_file(path) if os.path.isfile(path) and os.access(path, os.R_OK) else ""  # noqa: PTH113


def let_datagrams_wait() -> None:
    """Let long answers of the guest's mconsole wait for their reader, where the host's kernel leaves that to us."""
    try:
        write_file("/proc/sys/net/unix/max_dgram_qlen", str(DATAGRAMS))
    except OSError:
        return


class Notifications:
    """What the guest's kernel tells, passed on to everybody who asked for it, each with its time.

    Somebody must read it always: a kernel whose word nobody takes waits for ever (arch/um/drivers/mconsole_user.c
    mconsole_notify() sends on a blocking socket).
    """

    def __init__(self) -> None:
        self.source = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.source.bind(f"{PRIVATE}/notify")
        self.listeners: list[socket.socket] = []
        self.panic = b""

    def listen(self) -> socket.socket:
        """Return the reading end of a new listener's socket; a panic that was before is the first that it hears."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003
        self.listeners.append(ours)
        if self.panic:
            ours.send(self.panic)
        return theirs

    def pass_on(self) -> None:
        """Read one; whoever does not read what he asked for goes without."""
        datagram = self.source.recv(4096)
        told = time.time_ns().to_bytes(8, "little") + datagram
        if datagram.startswith(PANIC):
            self.panic = told
        for listener in list(self.listeners):
            try:
                listener.send(told)
            except BlockingIOError:
                continue
            except OSError:
                self.listeners.remove(listener)
                listener.close()


class LabInit:
    """Process 1: answers its controllers' requests; of those, one at a time has the agent."""

    def __init__(self, control: socket.socket, link: Link | None) -> None:
        self.controllers = [control]
        self.link = link
        self.links = [link] if link else []
        self.switch: Switch | None = None
        self.kernel = self.kernel_pidfd = 0
        self.kernel_file: os.stat_result | None = None
        self.kernel_status: int | None = None
        self.listener: socket.socket | None = None
        self.about: dict[str, Any] = {}
        self.kept: list[int] = []
        self.given: socket.socket | FileIO | None = None  # open until it is sent
        self.agent_user: tuple[socket.socket, dict[str, Any]] | None = None
        self.farewells = self.farewells_due = 0
        self.notifications = Notifications()
        # A connection for each command that is to run in the guest goes through here (kernel/init/exec.c).
        self.requests, self.guest_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests.setblocking(False)  # noqa: FBT003 - a kernel that stands still takes none

    def serve(self) -> None:
        """Answer requests; return when there is nobody who asks, or could."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while self.controllers or self.listener:
            watched: list[socket.socket | int] = [wake_read, self.notifications.source, *self.controllers]
            watched += [self.listener] if self.listener else []
            ready = wait(watched, writes=[self.kept[AGENT_SOCKET]] if self.farewells_due else ())
            if wake_read in ready:
                os.read(wake_read, 4096)
                self.reap()
            if self.notifications.source in ready:
                self.notifications.pass_on()
            for controller in [one for one in self.controllers if one in ready]:
                try:
                    self.answer(controller)
                except ConnectionError:
                    self.hang_up(controller)
            if self.listener and self.listener in ready:
                with suppress(OSError):  # it has hung up already
                    self.controllers.append(self.listener.accept()[0])
            if self.farewells_due and self.kept[AGENT_SOCKET] in ready:
                self.say_farewell()

    def answer(self, controller: socket.socket) -> None:
        """Answer one request of a controller, whatever it is.

        :raises ConnectionError: it is gone, or reads no answers
        """
        data, fds, flags, _ = socket.recv_fds(controller, MESSAGE_BYTES, DESCRIPTORS)
        if not data:
            raise ConnectionResetError
        self.asking = controller
        try:
            message, give = self.obey(data, flags, fds)
        except Exception as error:  # noqa: BLE001 - whatever was asked, the lab lives
            message, give = json.dumps(_refusal(error).reply).encode(), []
        for descriptor in fds:
            os.close(descriptor)
        try:
            socket.send_fds(controller, [message], give, socket.MSG_DONTWAIT)
        except OSError as error:
            raise ConnectionResetError from error
        finally:
            self.given = None  # whoever has it is to be the only one, so that his end is heard at the other side

    def obey(self, data: bytes, flags: int, fds: list[int]) -> tuple[bytes, list[int]]:
        """Carry out a request; return the answer, and the descriptors to go with it."""
        if flags & socket.MSG_TRUNC:
            raise ValueError(f"it has more than {MESSAGE_BYTES} bytes")
        arguments = json.loads(data)
        carry_out = getattr(self, f"do_{arguments.pop('op')}", None)
        if carry_out is None:
            raise ValueError("there is no such request")
        reply, give = carry_out(fds, **arguments)
        message = json.dumps(reply).encode()
        if len(message) > MESSAGE_BYTES:
            raise ValueError(f"the answer has more than {MESSAGE_BYTES} bytes")
        return message, give

    def hang_up(self, controller: socket.socket) -> None:
        """Forget a controller that is gone; the agent, if it had it, lets go of all that it asked for."""
        self.controllers.remove(controller)
        controller.close()
        if self.agent_user and self.agent_user[0] is controller:
            self.agent_user = None
            self.farewells += 1
            self.farewells_due += 1

    def say_farewell(self) -> None:
        """Tell the agent, whose socket has room, or whose kernel is gone."""
        due, self.farewells_due = self.farewells_due, 0
        with suppress(OSError):
            os.write(self.kept[AGENT_SOCKET], bytes([FAREWELL]) * due)

    def reap(self) -> None:
        """Collect every child that has ended; remember how the kernel did."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.kernel:
                self.kernel_status = os.waitstatus_to_exitcode(status)
                self.end_helpers()

    def end_helpers(self) -> None:
        """End what a kernel of 6.1 leaves behind: a helper for each terminal's size (arch/um/drivers/chan_user.c).

        It has all of the kernel's descriptors: who waits for their end, as of a command in the guest, would wait on.
        """
        assert self.kernel_file
        for name in os.listdir("/proc"):  # noqa: PTH208
            try:
                program = os.stat(f"/proc/{name}/exe") if name.isdigit() else None  # noqa: PTH116
                if program and os.path.samestat(program, self.kernel_file):
                    os.kill(int(name), signal.SIGKILL)
            except OSError:  # it has gone meanwhile
                continue

    def do_boot(self, fds: list[int], argv: list[str], stopped: bool, sees: dict[str, Any]) -> Answer:  # noqa: FBT001
        """Start the kernel with fds[0] as its console; give back a pidfd for it and a socket of its notifications.

        The other descriptors are handed on; ``{fd1}``, ``{fd2}`` in its command line are their numbers. A *stopped* one
        waits for SIGCONT before it becomes the kernel. What it *sees* of this machine is jail.confine()'s.
        """
        if self.kernel:
            raise ValueError("there is a kernel already")
        self.given = self.notifications.listen()
        refused, refuse = os.pipe2(os.O_CLOEXEC)
        self.kernel_file = os.stat(argv[0])  # noqa: PTH116
        self.kernel = os.fork()
        if self.kernel == 0:
            self.become_kernel(argv, fds, stopped, sees, refuse)
        os.close(refuse)
        with FileIO(refused) as words:
            if why := words.readall():
                self.kernel = 0
                return json.loads(why), []
        self.kernel_pidfd = os.pidfd_open(self.kernel)
        if self.link:
            os.close(self.link.guest_fd)  # the guest has it now, and the link is to end with the guest
        self.guest_requests.close()
        return {"pid": self.kernel}, [self.kernel_pidfd, self.given.fileno()]

    def do_keep(self, fds: list[int], about: dict[str, Any], who: dict[str, Any]) -> Answer:
        """Outlive the controller: listen for others, on fds[0], and keep for them what the other descriptors are."""
        if self.listener or len(fds) <= TERMINAL:
            raise ValueError("it is kept already, or without what others need")
        self.listener = socket.socket(fileno=os.dup(fds[0]))
        self.kept = [os.dup(descriptor) for descriptor in fds[1:]]
        self.own_pidfd = os.pidfd_open(os.getpid())
        self.about = about
        self.agent_user = (self.asking, who)
        return {}, []

    def do_join(self, fds: list[int]) -> Answer:
        """Give another controller what it needs to use the lab, but for the agent."""
        del fds
        about = {**self.about, "version": VERSION, "pid": self.kernel}
        self.given = self.notifications.listen()
        about_kernel = [self.kernel_pidfd, self.kept[CONSOLE], self.given.fileno()]
        return about, [self.own_pidfd, *about_kernel, *self.kept[TERMINAL:]]

    def do_agent(self, fds: list[int], who: dict[str, Any]) -> Answer:
        """Give a controller the agent's memory and socket, unless another has them."""
        del fds
        if self.agent_user:
            return {"busy": self.agent_user[1]}, []
        self.agent_user = (self.asking, who)
        return {"farewells": self.farewells}, [self.kept[AGENT_MEMORY], self.kept[AGENT_SOCKET]]

    def do_end(self, fds: list[int]) -> Answer:
        """End the lab, whoever uses it."""
        del fds
        os._exit(0)

    def become_kernel(
        self,
        argv: list[str],
        fds: list[int],
        stopped: bool,  # noqa: FBT001
        sees: dict[str, Any],
        refuse: int,
    ) -> NoReturn:
        """Turn this child into the kernel: own session, no address randomisation, nothing open but what it needs.

        What keeps it from that is written to *refuse*, which is closed when nothing of this machine can any more.
        """
        try:
            os.setsid()
            libc.personality(ADDR_NO_RANDOMIZE)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            os.dup2(fds[0], 1)
            os.dup2(fds[0], 2)
            first = [self.link.guest_fd] if self.link else []
            values = {"{private}": PRIVATE, "{link}": str(*first)}
            values["{requests}"] = str(self.guest_requests.fileno())
            values |= {f"{{fd{number}}}": str(descriptor) for number, descriptor in enumerate(fds)}
            for descriptor in (*first, self.guest_requests.fileno(), *fds[1:]):
                os.set_inheritable(descriptor, True)  # noqa: FBT003
            words = argv
            for place, value in values.items():
                words = [word.replace(place, value) for word in words]
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            libraries = confine(words[0], **sees)
            os.close(refuse)
            if stopped:
                os.kill(os.getpid(), signal.SIGSTOP)
            environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": PRIVATE, "LD_LIBRARY_PATH": libraries}
            os.execve(words[0], words, environment)  # noqa: S606
        except SetUpError as error:
            os.write(refuse, json.dumps(error.reply).encode())
        except OSError as error:
            os.write(2, f"skblab: cannot start {argv[0]}: {error}\n".encode())
        os._exit(127)

    def do_notifications(self, fds: list[int]) -> Answer:
        """Give one more socket of the kernel's notifications."""
        del fds
        self.given = self.notifications.listen()
        return {}, [self.given.fileno()]

    def do_status(self, fds: list[int]) -> Answer:
        """Tell how the kernel ended (exit status, or minus the signal), or None."""
        del fds
        self.reap()
        return {"status": self.kernel_status}, []

    def do_socket(self, fds: list[int], family: int, kind: int, protocol: int) -> Answer:
        """Open a socket on the host side of the link and give it away."""
        del fds
        self.given = socket.socket(family, kind, protocol)
        return {}, [self.given.fileno()]

    def do_link(self, fds: list[int], kind: str, device: str, addresses: list[str]) -> Answer:
        """Make one more link, and give the guest's end of it."""
        del fds
        link = Link(kind, device)
        self.given = FileIO(link.guest_fd)
        link.bring_up(addresses)
        self.links.append(link)
        return {"link": link.kind}, [link.guest_fd]

    def do_plug(self, fds: list[int], kind: str, name: str, addresses: list[str]) -> Answer:
        """Make a port on this lab's switch for another lab's guest, and give the guest's end of it.

        The first link becomes a switch with the first port; what is on it notices nothing.
        """
        del fds
        if self.link is None:
            raise SetUpError("no link", errno.ENODEV, "that lab has no link of its own, and no switch")
        self.switch = self.switch or Switch(self.link)
        link, addresses = self.switch.plug(kind, addresses)
        self.links.append(link)
        with open(f"{LAB}/hosts", "a") as hosts:  # noqa: PTH123
            hosts.writelines(f"{address.partition('/')[0]} {name}\n" for address in addresses)
        self.given = FileIO(link.guest_fd)
        return {"link": link.kind, "addresses": addresses}, [link.guest_fd]

    def do_drops(self, fds: list[int]) -> Answer:
        """Tell how many frames this side has dropped of all links: for guests, and from them."""
        del fds
        drops = [link.drops() for link in self.links]
        return {"drops": [sum(way[place] for way in drops) for place in (0, 1)]}, []

    def do_mconsole(self, fds: list[int]) -> Answer:
        """Give a datagram socket connected to the guest's mconsole; it is bound, for UML answers to an address."""
        del fds
        self.given = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.given.bind("")  # autobind: an abstract name of the kernel's choice, unix(7)
        self.given.connect(f"{PRIVATE}/uml/guest/mconsole")
        return {}, [self.given.fileno()]

    def do_command(self, fds: list[int]) -> Answer:
        """Give a connection to the guest's server of commands; what is said on it is between the two."""
        del fds
        self.given, guests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with guests:
            try:
                socket.send_fds(self.requests, [b"\0"], [guests.fileno()])
            except BlockingIOError as error:
                raise SetUpError(NO_COMMANDS, errno.EAGAIN) from error
        return {}, [self.given.fileno()]

    def do_ip(self, fds: list[int], program: str, lines: list[str]) -> Answer:
        """Run ip(8) or tc(8) commands on the host side."""
        del fds
        ip(*lines, program=program)
        return {}, []


def _refusal(error: Exception) -> SetUpError:
    """Return what a controller is told of a request that has failed: this machine refused it, or it was none."""
    if isinstance(error, SetUpError):
        return error
    if isinstance(error, OSError):
        return SetUpError(str(error), error.errno or 0)
    return SetUpError(BAD_REQUEST, errno.EINVAL, f"{type(error).__name__}: {error}"[:1000])


def inner(control: socket.socket, order: dict[str, Any]) -> None:
    """Be process 1 of the lab."""
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    try:
        private_mounts(order["hosts"])
        let_datagrams_wait()
        link = Link(order["link"], order["device"]) if order["link"] != "none" else None
        if link:
            link.bring_up(order["addresses"])
    except SetUpError as error:
        control.send(json.dumps(error.reply).encode())
        return
    except OSError as error:  # fork(2)
        control.send(json.dumps(SetUpError("first process", error.errno or 0).reply).encode())
        return
    about = {"link": link.kind, "why_not_tap": link.why_not_tap} if link else {"link": "none", "why_not_tap": ""}
    control.send(json.dumps(about).encode())
    LabInit(control, link).serve()


def outer(control: socket.socket) -> None:
    """Read the order, leave the host's namespaces, fork process 1, and wait for it.

    The order comes with a descriptor that holds the lock of the lab's name; it stays open in process 1 alone, so that
    the name is free the moment the lab is gone.
    """
    data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
    if not data:
        return
    for descriptor in fds:
        os.set_inheritable(descriptor, False)  # noqa: FBT003
    try:
        new_namespaces(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC)
    except SetUpError as error:
        control.send(json.dumps(error.reply).encode())
        return
    go_read, go_write = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.fork()
    except OSError as error:
        control.send(json.dumps(SetUpError("first process", error.errno or 0).reply).encode())
        return
    if pid == 0:
        os.close(go_write)
        os.read(go_read, 1)  # whose process it is, is said before what it says itself
        inner(control, json.loads(data))
        return
    socket.send_fds(control, [json.dumps({"pid": pid}).encode()], [os.pidfd_open(pid)])
    os.close(go_write)
    control.close()
    for descriptor in fds:
        os.close(descriptor)
    os.waitpid(pid, 0)


def main(control_fd: int) -> None:
    """Run a lab for the controller at the other end of an inherited socket, to its end or ours."""
    os.umask(0o022)  # the kernel is to read what is made for it
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # ip and tc, for ordinary users too
    status = 0
    try:
        outer(socket.socket(fileno=control_fd))
    except ConnectionError:  # the controller is gone, in the middle of a word
        status = 1
    os._exit(status)
