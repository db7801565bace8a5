"""Boot the guest's kernel and wait until its init reports that it is ready."""

import contextlib
import hashlib
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from skblab.clock import REAL, Clock, VirtualClock
from skblab.errors import BootFailed, GuestLost, SkblabError, Timeout
from skblab.guest import mconsole
from skblab.guest.console import Console
from skblab.guest.diagnosis import diagnose, disk_refused
from skblab.guest.disk import inspect
from skblab.guest.modules import parse_sections
from skblab.guest.panic import GuestPanicked, PanicWatch, panicked
from skblab.guest.programs import Programs
from skblab.guest.spin import Spin
from skblab.host import process
from skblab.host.namespace import GuestLink, Namespaces
from skblab.host.waiting import wait
from skblab.image.store import cache_dir

CALIBRATED = re.compile(r"\(lpj=(\d+)\)")
UBD = re.compile(r"ubd[0-9a-h]([a-z]*)")  # arch/um/drivers/ubd_kern.c ubd_setup_common(): a disk's name with its flags
READY = "ready"  # written to /proc/mconsole by the guest's init
LAST_WORDS_S = 1.0  # from the notification of a panic to the kernel's end
STACK_TIMEOUT_S = 1.0
BRANCH_SIGNAL = 63  # kernel/agent/agent_abi.h


@dataclass(frozen=True)
class Boot:
    """What to boot: the guest's files and size."""

    kernel: Path
    initramfs: Path
    memory_mib: int = 64
    timeout_s: float = 15.0
    extra: tuple[str, ...] = ()
    root: str = ""  # the host's directory that is the root of the guest's programs
    disks: tuple[Path, ...] = ()  # images or COW files; the first has the root file system with its init
    agent_fds: tuple[int, ...] = ()  # memory and socket, passed on to the kernel
    stopped: bool = False  # before the kernel's first instruction; boot() does not wait for it to be ready
    terminal_fds: tuple[int, ...] = ()  # of its virtual consoles, passed on to the kernel; they need a root
    clock_fds: tuple[int, ...] = ()  # one, passed on to the kernel: it runs in virtual time
    words: tuple[str, ...] = ()  # more of the kernel's command line, for virtual time

    def sees(self) -> dict[str, object]:
        """Return which files of this machine the kernel's process finds, for jail.confine().

        They include disks (``ubd0=``) and a directory (``rootflags=``) that the caller's own kernel arguments name.
        """
        words = dict(word.split("=", 1) for word in self.extra if "=" in word)
        files = [(str(disk), True) for disk in self.disks]
        for name, value in words.items():
            if disk := UBD.fullmatch(name):
                first, *others = re.split("[,:]", value)
                files += [(first, "r" not in disk[1]), *((other, False) for other in others)]
        for path, _ in tuple(files):
            if Path(path).is_file() and (header := inspect(Path(path))):
                files.append((header.backing_file, False))
        files = [(path, writes) for path, writes in files if path.startswith("/") and Path(path).exists()]
        tree = self.root or (words.get("rootflags", "") if words.get("rootfstype") == "hostfs" else "")
        return {
            "readable": [str(self.initramfs.resolve()), *(path for path, writes in files if not writes)],
            "writable": [path for path, writes in files if writes],
            "tree": str(Path(tree).resolve()) if tree.startswith("/") and Path(tree).is_dir() else "",
        }


def arguments(boot: Boot, namespaces: Namespaces, lpj: int | None) -> list[str]:
    """Return the kernel's command line.

    Process 1 of the lab replaces what is in braces; ``{private}`` has a link to the first files. The kernel's
    randomness begins with this line (drivers/char/random.c random_init_early()), so it has no path of the store.
    ``con`` and ``ssl`` are null, because their default starts an xterm.
    """
    return [
        str(boot.kernel.resolve()),
        f"mem={boot.memory_mib}M",
        "initrd={private}/initramfs",
        "root=/dev/ram0",
        "uml_dir={private}/uml",
        "umid=guest",
        "mconsole=notify:{private}/notify",
        "con=null",
        "con0=null,fd:1",
        "ssl=null",
        "noreboot",
        *links_of(namespaces.guest_links, 1 + len(boot.agent_fds) + len(boot.clock_fds) + len(boot.terminal_fds)),
        *(["skblab_memory={fd1}", "skblab_socket={fd2}", "skblab_requests={requests}"] if boot.agent_fds else []),
        *([f"skblab_root={boot.root.encode().hex()}"] if boot.root else []),
        # The link keeps its name; udev on the disk would rename it.
        *(["skblab_disk=1", "net.ifnames=0"] if boot.disks else []),
        *(f"ubd{number}={disk}" for number, disk in enumerate(boot.disks)),
        *([f"skblab_consoles={len(boot.terminal_fds)}"] if boot.terminal_fds else []),
        *(
            f"con{number}=fd:{{fd{number + len(boot.agent_fds) + len(boot.clock_fds)}}}"
            for number in range(1, len(boot.terminal_fds) + 1)
        ),
        *(_clock_words(1 + len(boot.agent_fds), boot.words) if boot.clock_fds else []),
        *([f"lpj={lpj}"] if lpj else []),
        *boot.extra,
        # Complaints are read from the console, by their timestamps: neither the user nor a distribution may hide them
        # (procps sets kernel.printk).
        "ignore_loglevel",
        "printk.time=1",
    ]


def _clock_words(number: int, more: Sequence[str]) -> list[str]:
    """Return the arguments for virtual time: by which descriptor the kernel and the agent speak of it."""
    return [f"time-travel=ext:{{fd{number}}}", f"skblab_clock={{fd{number}}}", *more]


def links_of(links: Sequence[GuestLink], first_fd: int) -> list[str]:
    """Return the arguments for the guest's links. A tap takes one frame per system call (``vec=0``), a socket many."""
    words = []
    for number, link in enumerate(links):
        place = "{link}" if link.fd is None else f"{{fd{first_fd}}}"
        first_fd += link.fd is not None
        words.append(f"vec{number}:transport=fd,fd={place}" + (",vec=0" if link.kind == "tap" else ""))
        words.append(f"skblab_link{number}=" + ",".join((f"vec{number}", *link.addresses)))
    return words


class Guest(Programs):
    """A running guest: the kernel's process, its console, its end."""

    spawned_s = ready_s = 0.0  # time.perf_counter(), if this process booted it
    requests = (0, 0)  # device and inode of its kernel's end of them, if this process booted it

    def __init__(
        self,
        namespaces: Namespaces,
        console: Console,
        pidfd: int,
        notify_fd: int,
        inner_pid: int,
        *,
        kernel: Path,
        clock: Clock = REAL,
    ) -> None:
        self.console = console
        self.clock = clock
        self.frozen = False  # its clock stands still while gdb has stopped the kernel
        self._kernel = kernel
        self._namespaces = namespaces
        self.pidfd = pidfd
        self.module_sections: dict[str, dict[str, int]] = {}  # of the user's modules: addresses of their code sections
        self.modules: dict[str, dict[str, int]] = {}  # the same, by the modules' files
        self.inner_pid = inner_pid  # in the lab's PID namespace
        self.pid = process.pid_of(pidfd)
        self._spin = Spin(self.pid)
        if isinstance(clock, VirtualClock):
            clock.nudge_by(self._nudge)
        self._notify = socket.socket(fileno=notify_fd)
        self.mconsole = mconsole.Mconsole(self._open_mconsole, pidfd, self.pid, self.lost, clock)

    @classmethod
    def boot(cls, boot: Boot, namespaces: Namespaces, console: Console, clock: Clock = REAL) -> "Guest":
        """Start a kernel; return when it is ready, or at once if it is *stopped*.

        :raises BootFailed: it panicked, or ended
        :raises Timeout: it is not ready in time
        """
        lpj_file = None if clock.is_virtual else _lpj_file(boot.kernel)
        known = lpj_file.read_text() if lpj_file and lpj_file.exists() else ""
        spawned_s = time.perf_counter()
        reply, (pidfd, notify) = namespaces.request(
            "boot",
            [
                console.writer,
                *boot.agent_fds,
                *boot.clock_fds,
                *boot.terminal_fds,
                *(link.fd for link in namespaces.guest_links if link.fd is not None),
            ],
            argv=arguments(boot, namespaces, int(known) if known.isdigit() else None),
            stopped=boot.stopped,
            sees=boot.sees(),
        )
        namespaces.booted()
        guest = cls(namespaces, console, pidfd, notify, reply["pid"], kernel=boot.kernel, clock=clock)
        guest.spawned_s, guest.requests = spawned_s, (reply["requests"][0], reply["requests"][1])
        if boot.stopped:
            return guest
        try:
            clock.attend(guest._relayed)
            guest._wait_ready(boot)
            if boot.disks:
                guest._wait_entered(boot)
        except BaseException:
            guest.close()
            raise
        guest.ready_s = time.perf_counter()
        if lpj_file and not known and (calibrated := CALIBRATED.search(console.text())):
            _keep(lpj_file, calibrated.group(1))
        return guest

    def _wait_ready(self, boot: Boot) -> None:
        """Wait for "ready" from init through /proc/mconsole, for a panic, or for the kernel's end."""
        left_s = self.clock.countdown(boot.timeout_s)
        while True:
            watched: list[socket.socket | int] = [self._notify]
            ready = self.clock.wait(watched, left_s(), at_once=[self.pidfd])
            if self._notify in ready:
                said = self.notification()
                if said.kind is mconsole.Kind.USER and said.text == READY:
                    return
                if said.kind is mconsole.Kind.USER and (sections := parse_sections(said.text)):
                    self.module_sections |= dict([sections])
                if said.kind is mconsole.Kind.PANIC:
                    wait([self.pidfd], LAST_WORDS_S)
                    raise self._never_ready(boot, f"the guest kernel panicked at boot: {said.text}")
            elif self.pidfd in ready:
                raise self._never_ready(boot, f"the guest kernel ended before it was ready ({self.how_it_ended()})")
            elif left_s() == 0:
                raise self._not_ready(boot)

    def _relayed(self) -> bool:
        """Have process 1 pass its notifications on: in virtual time, before more time passes; until the guest is up."""
        with contextlib.suppress(GuestLost):
            self._namespaces.request("status")
        return not self.ready_s and self.alive

    def _wait_entered(self, boot: Boot) -> None:
        """Wait until init reports that the disk's init has taken over, or why not (kernel/init/root.c tell_disk())."""
        watched: list[socket.socket | int] = [self._notify, self.pidfd]
        said = "mounted"
        while said == "mounted":
            ready = self.clock.wait(watched, boot.timeout_s)
            if not ready:
                raise Timeout(
                    f"the guest has not mounted {boot.disks[0]} within {boot.timeout_s:g} s",
                    found=self.console.evidence(),
                )
            if self._notify not in ready:
                raise self._never_ready(boot, f"the guest kernel ended before it was ready ({self.how_it_ended()})")
            said = self.notification().text.removeprefix("disk ")
        if said != "entered":
            error = disk_refused(str(boot.disks[0]), said, self.console.text())
            error.found = "\n".join(words for words in (error.found, self.console.evidence()) if words)
            raise error

    def _never_ready(self, boot: Boot, otherwise: str) -> SkblabError:
        """Return the error for a kernel that ended while booting; *otherwise* if no diagnosis fits."""
        error = diagnose(self.console.text(), self.how_it_ended(), initramfs=str(boot.initramfs))
        error = error or BootFailed(otherwise, hint=f"look at the kernel's own arguments: {' '.join(boot.extra)}")
        error.found = self._evidence()
        return error

    def _not_ready(self, boot: Boot) -> Timeout:
        """Return the error for a kernel that runs but is not ready, with the kernel stack of its first process."""
        evidence = self.console.evidence()
        try:
            evidence += f"\nits first process:\n{self.mconsole.command('stack 1', timeout_s=STACK_TIMEOUT_S).rstrip()}"
        except SkblabError as error:
            evidence += f"\nits mconsole: {error.what}"
        return Timeout(
            f"the guest was not ready within {boot.timeout_s:g} s",
            found=evidence,
            hint="a machine that is slow, or busy, wants a longer boot_timeout_s; an init of your own has to write\n"
            f'"{READY}" to /proc/mconsole',
        )

    def _nudge(self) -> None:
        """Let a second pass in virtual time where a program only computes (image/corrections/virtual_time.py)."""
        if self._spin.is_there():
            signal.pidfd_send_signal(self.pidfd, signal.SIGALRM)

    def ask_to_branch(self) -> None:
        """Ask the kernel's process, which rests, to take an order to copy itself.

        :raises GuestLost: it is gone
        """
        try:
            signal.pidfd_send_signal(self.pidfd, BRANCH_SIGNAL)
        except ProcessLookupError:
            raise self.lost() from None

    @property
    def alive(self) -> bool:
        """Whether the kernel's process has not ended."""
        return not self._has_ended(0)

    def how_it_ended(self) -> str:
        """Return the kernel's exit status or signal as text."""
        try:
            status = self._namespaces.request("status")[0]["status"]
        except GuestLost:
            return "with its whole lab"
        if status is None:
            return "still running" if self.alive else "it ended while gdb held it"
        return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"

    def lost(self) -> GuestLost:
        """Return the error that says how the guest's kernel ended, for the caller to raise."""
        self._has_ended(LAST_WORDS_S)  # its sockets close before it has an exit status
        ended = self.how_it_ended()
        error = diagnose(self.console.text(), ended) if self.console.panic() is None else None
        if error and "agent" in error.what:  # the agent is loaded after "ready"
            return GuestLost(f"the guest kernel is gone: {error.what}", found=self.console.evidence(), hint=error.hint)
        if ended == "exit status 0":
            return GuestLost(
                "the guest kernel is gone: it was halted, or rebooted, after which a lab does not come back",
                found=self.console.evidence(),
                hint="start another lab",
            )
        return GuestLost(f"the guest kernel is gone ({ended})", found=self._evidence())

    def panic(self, at_s: float = 0.0) -> GuestPanicked | None:
        """Return the panic on the console, or None; *at_s* is its time, as time.time()."""
        return panicked(self.console, self._kernel, at_s)

    def on_panic(self, callback: Callable[[GuestPanicked], object]) -> PanicWatch:
        """Call *callback* when the kernel panics, on a thread of its own."""
        _, (descriptor,) = self._namespaces.request("notifications")
        return PanicWatch(socket.socket(fileno=descriptor), self.pidfd, self.panic, callback)

    def _evidence(self) -> str:
        event = self.panic()
        return self.console.evidence() + (f"\ncall trace:\n{event}" if event else "")

    @property
    def notifications(self) -> socket.socket:
        """The socket of the guest's notifications, readable when one is there."""
        return self._notify

    def notification(self) -> mconsole.Notification:
        """Wait for the next notification and return it.

        :raises GuestLost: the guest is gone with its lab
        """
        try:
            return mconsole.receive(self._notify)
        except ConnectionError:
            raise self.lost() from None

    def _open_mconsole(self) -> socket.socket:
        _, (descriptor,) = self._namespaces.request("mconsole")
        return socket.socket(fileno=descriptor)

    def close(self) -> None:
        """Close this process's descriptors of the guest, which ends with its namespaces."""
        self._notify.close()
        os.close(self.pidfd)


def _lpj_file(kernel: Path) -> Path:
    """Return the file of this kernel's loops per jiffy on this machine: calibrating takes 40-90 ms at each boot."""
    cpu = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")), "")
    key = hashlib.sha256(f"{cpu}\0{kernel}\0{kernel.stat().st_mtime_ns}".encode()).hexdigest()[:16]
    return cache_dir() / "lpj" / key


def _keep(path: Path, text: str) -> None:
    """Write a file of the cache by rename; failing to write it is not an error."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_suffix(f".{os.getpid()}")
        scratch.write_text(text)
        scratch.rename(path)
