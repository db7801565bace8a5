"""The first process of a lab: makes the namespaces and the link, starts the kernel; everything ends with it.

A program of its own that imports little (subprocess, pathlib and typing take 60 ms here). It forks itself for each lab
(``nurse()``, for ``nursery.py``), into namespaces of the lab's own, of which the child is process 1. When that ends,
for whatever reason, the kernel kills every process of the PID namespace (pid_namespaces(7)), and the network namespace,
the tap and the mounts go with the last of them: nothing is left to clean up. Process 1 ends when its controller ends,
at the end of file on the control socket.

A control socket carries one JSON object per datagram, with file descriptors beside it: each request gets one reply. A
lab that outlives its controller listens for others, and keeps the descriptors that they need.
"""

from __future__ import annotations

import array
import errno
import json
import os
import resource
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
    become_root,
    confine,
    fork_into_namespaces,
    mount,
    prepare,
)
from skblab.host.link import Link, SetUpError, Switch, ip, libc, read_file, write_file
from skblab.host.waiting import wait

TYPE_CHECKING = False
if TYPE_CHECKING:  # typing.TYPE_CHECKING without importing typing
    from collections.abc import Container
    from typing import Any, NoReturn

    Answer = tuple[dict[str, Any], list[int]]

ADDR_NO_RANDOMIZE = 0x0040000

MESSAGE_BYTES = 1 << 16
END_S = 5.0  # for a process that was killed; the controller waits longer
DESCRIPTORS = 32  # with one message, at most
DATAGRAMS = (
    512  # queued for their reader (unix(7), max_dgram_qlen; 10 by default): UML drops an answer when the queue is full
)
PANIC = b"\xbe\xba\xfe\xca\2\0\0\0\1\0\0\0"  # how the notification of a panic begins (arch/um/drivers/mconsole.h)
MCONSOLE = f"{PRIVATE}/uml/guest/mconsole"
CONSOLE, AGENT_MEMORY, AGENT_SOCKET, TERMINAL = range(4)  # indexes of the descriptors kept for other controllers
FAREWELL = 1  # kernel/agent/agent_abi.h
# Version of requests and answers, of the kept descriptors, of the memory shared with the agent, and of what the guest's
# init understands: a newer skblab may join a lab that an older one has started.
VERSION = 4
BAD_REQUEST, NO_COMMANDS = "request", "no commands"

# The kernel's first descriptor of ours: its command line, with which its randomness begins, is the same each time.
FIRST_FD = 500

# gai.conf(5), as RFC 6724 section 2.1 has it for private addresses: "ping guest" is the ping of the textbooks.
PREFER_IP4 = "precedence ::ffff:0:0/96 100\nprecedence ::1/128 50\nprecedence ::/0 40\n"


def private_mounts(hosts: str) -> None:
    """Give the lab its own /proc, private files in memory, and the host names "guest" and "host", IPv4 first.

    The directory to mount over must exist on every machine. A mount on /tmp would hide files that people give to their
    clients; UML keeps the guest's memory in /dev/shm anyway (arch/um/os-Linux/mem.c).
    """
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    mount("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount_memory()
    prepare()
    hosts = f"{_machines_hosts().rstrip()}\n{hosts}\n"
    for name, text in (("hosts", hosts), ("gai.conf", PREFER_IP4)):
        if os.path.isfile(f"/etc/{name}"):  # noqa: PTH113
            write_file(f"{LAB}/{name}", text)
            mount(f"{LAB}/{name}", f"/etc/{name}", "", MS_BIND)


def mount_memory() -> None:
    """Mount what the guest's memory lies on: in huge pages where the host's kernel has them.

    A guest touches some 1,500 of its small pages until it has answered a ping, and each would be a fault of its own.
    """
    options = "mode=0700"
    try:
        mount("tmpfs", LAB, "tmpfs", MS_NOSUID | MS_NODEV, f"{options},huge=within_size")  # tmpfs(5)
    except SetUpError:  # its CONFIG_TRANSPARENT_HUGEPAGE is not set
        mount("tmpfs", LAB, "tmpfs", MS_NOSUID | MS_NODEV, options)


def _machines_hosts() -> str:
    """Return /etc/hosts, or "" if it is not a file or this user may not read it."""
    path = "/etc/hosts"
    return read_file(path) if os.path.isfile(path) and os.access(path, os.R_OK) else ""  # noqa: PTH113


def let_datagrams_wait() -> None:
    """Lengthen the datagram queue for long answers of the guest's mconsole, if the host's kernel permits it."""
    try:
        write_file("/proc/sys/net/unix/max_dgram_qlen", str(DATAGRAMS))
    except OSError:
        return


class Notifications:
    """The guest kernel's mconsole notifications, passed on to every listener with their time.

    Somebody must always read them: the kernel sends them on a blocking socket and would wait for ever
    (arch/um/drivers/mconsole_user.c mconsole_notify()).
    """

    def __init__(self) -> None:
        self.source = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.source.bind(f"{PRIVATE}/notify")
        self.listeners: list[socket.socket] = []
        self.silent: set[socket.socket] = set()  # those of a kernel that was copied: they hear nothing of the copy
        self.panic = b""

    def close(self) -> None:
        """Close all sockets."""
        for one in (self.source, *self.listeners):
            one.close()

    def listen(self) -> socket.socket:
        """Return the reading end of a new listener's socket; an earlier panic is the first thing that it reads."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003
        self.listeners.append(ours)
        if self.panic:
            ours.send(self.panic)
        return theirs

    def forget(self, ready: Container[object]) -> bool:
        """Forget the listeners of *ready*: those that have hung up, which say nothing else. Return whether any are."""
        gone = [listener for listener in self.listeners if listener in ready]
        for listener in gone:
            self.listeners.remove(listener)
            listener.close()
        return bool(gone)

    def begin_branch(self) -> set[socket.socket]:
        """Pass what comes on to those that listen from now on; return the others."""
        before = {*self.listeners}
        self.silent = before
        return before

    def end_branch(self, silent: set[socket.socket], before: set[socket.socket]) -> None:
        """Forget what a branch said, and who listens to it."""
        with suppress(BlockingIOError):
            while True:
                self.source.recv(4096, socket.MSG_DONTWAIT)
        self.forget({*self.listeners} - before)
        self.silent, self.panic = silent, b""

    def pass_on(self) -> None:
        """Pass one notification on; a listener whose socket is full, or which has hung up, misses it."""
        datagram = self.source.recv(4096)
        stamped = time.time_ns().to_bytes(8, "little") + datagram
        if datagram.startswith(PANIC):
            self.panic = stamped
        for listener in self.listeners:
            if listener not in self.silent:
                with suppress(OSError):
                    listener.send(stamped)


class Stem:
    """A kernel that was copied, and what it has here."""

    def __init__(self, lab: LabInit, mconsole: str) -> None:
        self.kernel, self.kernel_pidfd, self.requests = lab.kernel, lab.kernel_pidfd, lab.requests
        self.mconsole = mconsole
        self.silent = lab.notifications.silent
        self.listeners = lab.notifications.begin_branch()


class LabInit:
    """Process 1: answers its controllers' requests. One controller at a time has the agent."""

    def __init__(self, control: socket.socket, link: Link | None, lock: int) -> None:
        self.controllers = [control]
        self.lock = lock
        self.link = link
        self.links = [link] if link else []
        self.switch: Switch | None = None
        self.kernel = self.kernel_pidfd = 0
        self.kernel_file: os.stat_result | None = None
        self.statuses: dict[int, int] = {}  # of kernels that have ended
        self.stems: list[Stem] = []  # of the kernel that runs: it is a copy of the last one's, and so on
        self.listener: socket.socket | None = None
        self.is_full = False  # it can open no descriptor for one more controller until another is gone
        self.about: dict[str, Any] = {}
        self.kept: list[int] = []
        self.given: socket.socket | FileIO | None = None  # kept open until it is sent
        self.agent_user: tuple[socket.socket, dict[str, Any]] | None = None
        self.farewells = self.farewells_due = 0
        self.notifications = Notifications()
        # The connection of each guest command is sent through this pair (kernel/init/exec.c).
        self.requests, self.guest_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.requests.setblocking(False)  # noqa: FBT003 - a stopped kernel accepts none

    def serve(self) -> None:
        """Answer requests; return when there is no controller and no listening socket."""
        wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(wake_write)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        while self.controllers or self.listener:
            watched: list[socket.socket | int] = [wake_read, self.notifications.source, *self.controllers]
            watched += self.notifications.listeners
            watched += [self.listener] if self.listener and not self.is_full else []
            ready = wait(watched, writes=[self.kept[AGENT_SOCKET]] if self.farewells_due else ())
            if wake_read in ready:
                os.read(wake_read, 4096)
                self.reap()
            if self.notifications.source in ready:
                self.notifications.pass_on()
            if self.notifications.forget(ready):
                self.is_full = False
            for controller in [one for one in self.controllers if one in ready]:
                try:
                    self.answer(controller)
                except ConnectionError:
                    self.hang_up(controller)
            if self.listener and self.listener in ready:
                self.accept(self.listener)
            if self.farewells_due and self.kept[AGENT_SOCKET] in ready:
                self.say_farewell()
        os.close(wake_read)
        os.close(wake_write)

    def accept(self, listener: socket.socket) -> None:
        """Let one more controller in; it waits where there is no descriptor for it."""
        try:
            self.controllers.append(listener.accept()[0])
        except OSError as error:  # else the peer has hung up already
            self.is_full = error.errno in {errno.EMFILE, errno.ENFILE}

    def answer(self, controller: socket.socket) -> None:
        """Answer one request of a controller, valid or not.

        :raises ConnectionError: the controller is gone, or does not read its answers
        """
        data, fds, flags, _ = socket.recv_fds(controller, MESSAGE_BYTES, DESCRIPTORS)
        if not data:
            raise ConnectionResetError
        self.asking = controller
        try:
            message, give = self.obey(data, flags, fds)
        except Exception as error:  # noqa: BLE001 - the lab survives any request
            message, give = json.dumps(_refusal(error).reply).encode(), []
        for descriptor in fds:
            os.close(descriptor)
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", give))
        try:
            controller.sendmsg([message], [rights], socket.MSG_DONTWAIT)  # socket.send_fds() passes no flags on
        except OSError as error:
            raise ConnectionResetError from error
        finally:
            self.given = None  # our copy is closed: the peer sees end of file when the receiver closes its own

    def obey(self, data: bytes, flags: int, fds: list[int]) -> tuple[bytes, list[int]]:
        """Carry out a request; return the answer, and the descriptors to send with it."""
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
        """Forget a controller that is gone; if it had the agent, the agent drops its rules and releases its packets."""
        self.controllers.remove(controller)
        controller.close()
        self.is_full = False
        if self.agent_user and self.agent_user[0] is controller:
            self.agent_user = None
            self.farewells += 1
            self.farewells_due += 1

    def say_farewell(self) -> None:
        """Send the farewells that are due to the agent; its socket is writable, or its kernel is gone."""
        due, self.farewells_due = self.farewells_due, 0
        with suppress(OSError):
            os.write(self.kept[AGENT_SOCKET], bytes([FAREWELL]) * due)

    def reap(self) -> None:
        """Wait for every child that has ended; remember the kernel's status."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid == self.kernel or any(pid == stem.kernel for stem in self.stems):
                self.statuses[pid] = os.waitstatus_to_exitcode(status)
                self.end_helpers()

    def end_helpers(self) -> None:
        """Kill the helpers that a 6.1 kernel leaves behind, one for each terminal's size (arch/um/drivers/chan_user.c).

        A helper has all of the kernel's descriptors: a reader of one, as of a guest command's output, would see no end.
        A branch has none, for it has no terminal; its stem is of the same file.
        """
        if self.stems:
            return
        for pid in self.of_kernels():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def do_boot(self, fds: list[int], argv: list[str], stopped: bool, sees: dict[str, Any]) -> Answer:  # noqa: FBT001
        """Start the kernel with fds[0] as its console; return a pidfd for it and a socket of its notifications.

        The other descriptors are passed on; ``{fd1}``, ``{fd2}`` in its command line stand for their numbers.
        *stopped*: the process waits for SIGCONT before it executes the kernel. *sees*: the files for jail.confine().
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
            os.close(self.link.guest_fd)  # only the guest has it now: the link ends with the guest
        about = os.fstat(self.guest_requests.fileno())
        self.guest_requests.close()
        reply = {"pid": self.kernel, "requests": (about.st_dev, about.st_ino)}
        return reply, [self.kernel_pidfd, self.given.fileno()]

    def do_branch(self, fds: list[int], size: int) -> Answer:
        """Return what a copy of the kernel has of this process.

        Memory (*size*, bytes), its end of the requests, its mconsole.
        """
        del fds
        if self.links or self.listener or not self.kernel:
            raise ValueError("it has a link, or no kernel, or is kept")
        self.given = memory = FileIO(os.open(LAB, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600), "r+")
        memory.truncate(size)
        requests, guest_requests = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        requests.setblocking(False)  # noqa: FBT003
        mconsole = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        stem = Stem(self, f"{PRIVATE}/mconsole{len(self.stems)}")
        # A kernel that is halted removes its mconsole, by the name that it knows: the copy has that, too.
        with suppress(FileNotFoundError):
            os.rename(MCONSOLE, stem.mconsole)  # noqa: PTH104
        self.stems.append(stem)
        self.requests, self.guest_requests, self.branch_mconsole = requests, guest_requests, mconsole
        try:
            mconsole.bind(MCONSOLE)
        except OSError:
            self.prune()
            raise
        descriptors = [memory.fileno(), guest_requests.fileno(), mconsole.fileno()]
        return {"depth": len(self.stems)}, descriptors

    def do_adopt(self, fds: list[int], pid: int) -> Answer:
        """Have a copy of the kernel be the one that runs; return a pidfd for it and a socket of its notifications."""
        del fds
        known = {stem.kernel for stem in self.stems}
        if self.kernel not in known or pid in known or os.getpgid(pid) != pid:
            raise ValueError("it has no branch, or another")
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)  # the guest says so: it is a child of ours
        self.guest_requests.close()
        self.branch_mconsole.close()
        self.given = self.notifications.listen()
        self.kernel_pidfd = os.pidfd_open(pid)
        self.kernel = pid
        return {}, [self.kernel_pidfd, self.given.fileno()]

    def do_prune(self, fds: list[int], depth: int) -> Answer:
        """End the copies of the kernel from one on; have the one that it was copied from be the one that runs."""
        del fds
        while len(self.stems) >= max(depth, 1):
            self.prune()
        return {}, []

    def prune(self) -> None:
        """End the copy of the kernel that runs."""
        stem = self.stems[-1]
        self.end_copies({one.kernel for one in self.stems})
        if self.kernel != stem.kernel:
            wait([self.kernel_pidfd], END_S)
            os.close(self.kernel_pidfd)
        self.reap()
        self.stems.pop()
        self.statuses.pop(self.kernel, None)
        for one in (self.requests, self.guest_requests, self.branch_mconsole):
            one.close()
        with suppress(FileNotFoundError):
            os.rename(stem.mconsole, MCONSOLE)  # noqa: PTH104
        self.kernel, self.kernel_pidfd = stem.kernel, stem.kernel_pidfd
        self.requests = stem.requests
        self.notifications.end_branch(stem.silent, stem.listeners)

    def end_copies(self, kept: set[int]) -> None:
        """Kill the process groups of kernels other than these: one that was not adopted is unknown otherwise."""
        groups = set()
        for pid in self.of_kernels():
            with suppress(ProcessLookupError):  # it has ended since
                groups.add(os.getpgid(pid))
        for group in groups - kept - {os.getpgrp(), 0}:
            with suppress(ProcessLookupError):
                os.killpg(group, signal.SIGKILL)

    def of_kernels(self) -> list[int]:
        """Return the processes that execute the kernel's file."""
        assert self.kernel_file
        found = []
        for name in os.listdir("/proc"):  # noqa: PTH208
            with suppress(OSError):  # it has ended since
                if name.isdigit() and os.path.samestat(os.stat(f"/proc/{name}/exe"), self.kernel_file):  # noqa: PTH116
                    found.append(int(name))
        return found

    def do_keep(self, fds: list[int], about: dict[str, Any], who: dict[str, Any]) -> Answer:
        """Outlive the controller: listen for others on fds[0], and keep the other descriptors for them."""
        if self.listener or len(fds) <= TERMINAL:
            raise ValueError("it is kept already, or without what others need")
        self.listener = socket.socket(fileno=os.dup(fds[0]))
        self.kept = [os.dup(descriptor) for descriptor in fds[1:]]
        self.own_pidfd = os.pidfd_open(os.getpid())
        self.about = about
        self.agent_user = (self.asking, who)
        return {}, []

    def do_join(self, fds: list[int]) -> Answer:
        """Give another controller what it needs to use the lab, except the agent."""
        del fds
        about = {**self.about, "version": VERSION, "pid": self.kernel}
        self.given = self.notifications.listen()
        about_kernel = [self.kernel_pidfd, self.kept[CONSOLE], self.given.fileno()]
        return about, [self.own_pidfd, *about_kernel, *self.kept[TERMINAL : self.behind_terminals()]]

    def behind_terminals(self) -> int:
        """Return the index behind the kept terminals: in virtual time, of the connection of the guest's clock."""
        return len(self.kept) - bool(self.about.get("virtual"))

    def do_agent(self, fds: list[int], who: dict[str, Any]) -> Answer:
        """Give a controller the agent's memory and socket, unless another has them."""
        del fds
        if self.agent_user:
            return {"busy": self.agent_user[1]}, []
        self.agent_user = (self.asking, who)
        agent = [self.kept[AGENT_MEMORY], self.kept[AGENT_SOCKET]]
        return {"farewells": self.farewells}, [*agent, *self.kept[self.behind_terminals() :]]

    def do_end(self, fds: list[int]) -> Answer:
        """End the lab, even while others use it."""
        del fds
        if self.kernel:  # first: in virtual time it would find its clock gone, and panic
            with suppress(ProcessLookupError):
                os.kill(self.kernel, signal.SIGKILL)
        os._exit(0)

    def become_kernel(
        self,
        argv: list[str],
        fds: list[int],
        stopped: bool,  # noqa: FBT001
        sees: dict[str, Any],
        refuse: int,
    ) -> NoReturn:
        """Execute the kernel in this child: own session, no address randomisation, no descriptor that it does not need.

        A failure is written to *refuse*, which is closed once this machine can refuse nothing any more.
        """
        try:
            os.setsid()
            stay_here()
            libc.personality(ADDR_NO_RANDOMIZE)
            os.dup2(os.open("/dev/null", os.O_RDWR), 0)
            os.dup2(fds[0], 1)
            os.dup2(fds[0], 2)
            first = [self.link.guest_fd] if self.link else []
            places = ["{link}"] * len(first) + ["{requests}", *(f"{{fd{number}}}" for number in range(1, len(fds)))]
            values = {"{private}": PRIVATE, "{link}": ""}
            given = (*first, self.guest_requests.fileno(), *fds[1:])
            values |= dict(zip(places, map(str, _inherited(given)), strict=True))
            words = argv
            for place, value in values.items():
                words = [word.replace(place, value) for word in words]
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            for first_files in sees["readable"][:1]:
                os.symlink(first_files, f"{PRIVATE}/initramfs")  # noqa: PTH211
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
        """Return the kernel's exit status, minus the signal that killed it, or None while it runs."""
        del fds
        self.reap()
        return {"status": self.statuses.get(self.kernel)}, []

    def do_socket(self, fds: list[int], family: int, kind: int, protocol: int) -> Answer:
        """Open a socket on the host side and return it."""
        del fds
        self.given = socket.socket(family, kind, protocol)
        return {}, [self.given.fileno()]

    def do_link(self, fds: list[int], kind: str, device: str, addresses: list[str]) -> Answer:
        """Make one more link; return the guest's end of it."""
        del fds
        link = Link(kind, device)
        self.given = FileIO(link.guest_fd)
        link.bring_up(addresses)
        self.links.append(link)
        return {"link": link.kind}, [link.guest_fd]

    def do_plug(self, fds: list[int], kind: str, name: str, addresses: list[str]) -> Answer:
        """Make a port on this lab's switch for another lab's guest; return the guest's end of it.

        The first link becomes the switch's first port; its guest and clients do not notice.
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
        """Return how many frames the host side has dropped on all links: for guests, and from them."""
        del fds
        drops = [link.drops() for link in self.links]
        return {"drops": [sum(way[place] for way in drops) for place in (0, 1)]}, []

    def do_mconsole(self, fds: list[int]) -> Answer:
        """Return a datagram socket connected to the guest's mconsole, and bound, because UML answers to an address."""
        del fds
        self.given = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.given.bind("")  # autobind: the kernel chooses an abstract name, unix(7)
        self.given.connect(MCONSOLE)
        return {}, [self.given.fileno()]

    def do_command(self, fds: list[int]) -> Answer:
        """Return a connection to the command server in the guest (kernel/init/exec.c)."""
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


def stay_here() -> None:
    """Keep this process, and its children, on the processor where fork(2) has put it: on the one that has least to do.

    A kernel and the programs of its guest take turns. Who has another processor is woken there each time, which takes
    longer than most turns; the scheduler puts them there where that one is idle.
    """
    with suppress(OSError):  # it is not there any more
        os.sched_setaffinity(0, {libc.sched_getcpu()})


def _inherited(descriptors: tuple[int, ...]) -> list[int]:
    """Let the program that is executed next have descriptors; return their numbers: from FIRST_FD, if allowed."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    behind = FIRST_FD + len(descriptors)
    if most != resource.RLIM_INFINITY and most < behind:
        for descriptor in descriptors:
            os.set_inheritable(descriptor, True)  # noqa: FBT003
        return list(descriptors)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < behind:
        resource.setrlimit(resource.RLIMIT_NOFILE, (behind, most))
    numbers = [os.dup2(descriptor, number) for number, descriptor in enumerate(descriptors, FIRST_FD)]
    for descriptor in descriptors:
        os.close(descriptor)
    return numbers


def _refusal(error: Exception) -> SetUpError:
    """Return the error reply for a failed request: this machine refused it, or it was malformed."""
    if isinstance(error, SetUpError):
        return error
    if isinstance(error, OSError):
        return SetUpError(str(error), error.errno or 0)
    return SetUpError(BAD_REQUEST, errno.EINVAL, f"{type(error).__name__}: {error}"[:1000])


def set_up(control: socket.socket, user: tuple[int, int]) -> LabInit | None:
    """Set the lab up as its controller orders; return what serves it, or None where the controller is gone.

    The order comes with a descriptor that holds the lock of the lab's name, which is free as soon as the lab is gone.
    """
    become_root(*user)
    data, fds, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 1)
    if not data or not fds:
        return None
    os.set_inheritable(fds[0], False)  # noqa: FBT003
    order = json.loads(data)
    private_mounts(order["hosts"])
    let_datagrams_wait()
    link = Link(order["link"], order["device"]) if order["link"] != "none" else None
    if link:
        link.bring_up(order["addresses"])
    about = {"link": link.kind, "why_not_tap": link.why_not_tap} if link else {"link": "none", "why_not_tap": ""}
    control.send(json.dumps(about).encode())
    return LabInit(control, link, fds[0])


def refuse(control: socket.socket, error: SetUpError) -> None:
    """Report that this machine refuses a lab."""
    control.send(json.dumps(error.reply).encode())


def live(control: socket.socket, user: tuple[int, int]) -> NoReturn:
    """Run as process 1 of a lab, for the controller at the other end of a socket, until either ends.

    :param user: who started the lab, and their group
    """
    os.setsid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.umask(0o022)  # the guest's kernel must be able to read the files made here
    os.environ["PATH"] = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"  # of ip and tc
    with suppress(ConnectionError):  # the controller has ended
        lab = None
        try:
            lab = set_up(control, user)
        except SetUpError as error:
            refuse(control, error)
        except OSError as error:  # fork(2)
            refuse(control, SetUpError("first process", error.errno or 0))
        if lab:
            lab.serve()
    os._exit(0)


def nurse(orders_fd: int) -> NoReturn:
    """Fork process 1 of a lab for each control socket that comes, until the other end of *orders_fd* is closed."""
    orders = socket.socket(fileno=orders_fd)
    os.chdir("/")
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for their status
    user = os.geteuid(), os.getegid()
    while True:
        data, fds, _, _ = socket.recv_fds(orders, 1, 1)
        if not data or not fds:
            os._exit(0)
        give = []
        with socket.socket(fileno=fds[0]) as control:
            try:
                child = fork_into_namespaces(CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC)
            except SetUpError as error:
                refuse(control, error)
            else:
                if child == 0:
                    orders.close()
                    live(control, user)
                with suppress(ProcessLookupError):  # it has ended already: the controller is gone
                    give = [os.pidfd_open(child)]
        try:
            socket.send_fds(orders, [b"\0"], give)
        except OSError:
            os._exit(1)
        for descriptor in give:
            os.close(descriptor)
