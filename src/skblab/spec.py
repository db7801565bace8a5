"""LabSpec: which guest to boot, on which links, with what in it; data, checked where it is made."""

import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypedDict, get_args

from skblab import files
from skblab.agent.channel import STEPS_BYTES
from skblab.agent.control import DEFAULT_LEASE_S
from skblab.agent.packets import MOST_DELAY_S
from skblab.clock import MOST_S
from skblab.errors import UsageError, check_lists, check_times
from skblab.guest import nodes
from skblab.guest.disk import Disk
from skblab.guest.modules import Module
from skblab.host.links import Addresses
from skblab.image.image import Image
from skblab.image.recipe import DEFAULT_SERIES, USERSPACES

if TYPE_CHECKING:
    from skblab.lab import Lab

Time = Literal["real", "virtual"]
Stops = Literal["running", "frozen"]
HOST_ROOT = "host"  # LabSpec.root: this machine's own /
LISTS = ("kernel_arguments", "disks", "modules", "commands", "nodes")  # fields
MOST_CONSOLES = 15  # arch/um/drivers/stdio_console.c MAX_TTYS, less the kernel's own
LEAST_STEPS_BYTES, MOST_STEPS_BYTES = 1 << 20, 1 << 32

# By default. Nobody but skblab up's users connects to one, and its shell is a tenth of a short guest's life.
CONSOLES: dict[Time, int] = {"real": 1, "virtual": 0}


class LabFields(TypedDict, total=False):
    """The fields of LabSpec as keywords, for ``Lab(...)``."""

    image: Image | Path | None
    series: str
    variant: str
    link: str | Sequence[str]
    memory_mib: int
    kernel_arguments: Sequence[str]
    boot_timeout_s: float
    root: str
    userspace: str
    disks: Sequence[str]
    modules: Sequence[str]
    consoles: int | None
    commands: Sequence[str]
    steps_bytes: int
    lease_s: float
    from_boot: bool
    time: Time
    seed: int
    nodes: Sequence[str]
    most_s: float
    timeout_s: float | None
    clock: Stops


@dataclass(frozen=True, kw_only=True)
class LabSpec:
    """A lab that can be started, any number of times, in this process or in another: it can be pickled.

    ::

        with LabSpec(root="host").start() as lab:
            lab.run(["ping", "-c", "1", "guest"])

    :param image: an image, or its directory. Default: the newest of *series* and *variant*
    :param series: kernel series, ``"6.12"``, ``"6.1"`` or ``"7.3"``
    :param variant: set of kernel options
    :param link: ``"tap"``, ``"veth"``, or ``"auto"``: a tap where this user may open /dev/net/tun; several, each in the
        words of ``--link``: ``["lan,tap", "wan,guest=10.0.0.1/24,host=10.0.0.2/24", "on=otherlab"]``
    :param memory_mib: the guest's memory
    :param kernel_arguments: more words for the kernel's command line
    :param boot_timeout_s: how long the guest may take to boot
    :param root: a directory, or ``"host"`` for ``/``: the guest's programs see its files;
        what they write stays in memory
    :param userspace: how the kernel runs the guest's programs: ``"ptrace"``, or ``"seccomp"``, which is faster,
        needs Linux 7.x, and trusts them: such a program can read and write the guest's whole memory, its kernel's too.
        Default: seccomp with ``root="host"`` on a kernel that has it, else ptrace
    :param disks: ``"IMAGE"``, ``"COW"`` or ``"COW,BACKING"``; the guest boots from the first
    :param modules: kernel modules to load first, ``"FILE.ko"`` or ``"FILE.ko,NAME=VALUE,..."``
    :param consoles: how many virtual consoles the guest has, each with a shell, or a login of the disk's; with a root.
        Default: one, in virtual time none
    :param commands: shell lines to run in the guest; the lab is ready when each listens on a TCP port; a line that
        begins with ``udp:`` has to bind a UDP socket
    :param steps_bytes: memory between a trace's kernel and its file, a power of two
    :param lease_s: a held packet is released after that time if nobody has decided on it; 0: never
    :param from_boot: the kernel stands before its first instruction until ``gdb_prompt()`` lets it run
    :param time: ``"virtual"``: time passes in the guest only while somebody waits; its clients run in it, too, on the
        node ``"host"``, so it has this machine's ``/`` unless *root* is another directory
    :param seed: in virtual time, determines all randomness of the guest; 0 to 2^64 - 1
    :param clock: in real time, while gdb has stopped the kernel: ``"running"``, it jumps by the length of the stop, and
        timers end at once; or ``"frozen"``
    :param nodes: in virtual time, names of more network namespaces in the guest, each with an address on the link
    :param most_s: in virtual time, how much of it a wait without limit may take
    :param timeout_s: in virtual time, how much of this machine's time the guest may run, altogether

    :raises UsageError: a field is out of its range, or two do not go together
    """

    image: Image | Path | None = None
    series: str = DEFAULT_SERIES
    variant: str = "default"
    link: str | Sequence[str] = "auto"
    memory_mib: int = 64
    kernel_arguments: Sequence[str] = ()
    boot_timeout_s: float = 15.0
    root: str = ""
    userspace: str = ""
    disks: Sequence[str] = ()
    modules: Sequence[str] = ()
    consoles: int | None = None
    commands: Sequence[str] = ()
    steps_bytes: int = STEPS_BYTES
    lease_s: float = DEFAULT_LEASE_S
    from_boot: bool = False
    time: Time = "real"
    seed: int = 0
    nodes: Sequence[str] = ()
    most_s: float = MOST_S
    timeout_s: float | None = None
    clock: Stops = "running"

    def __post_init__(self) -> None:
        self._set("image", self.image.path if isinstance(self.image, Image) else self.image)
        check_lists(**{name: getattr(self, name) for name in LISTS})
        self._check_types()
        self._set("link", (self.link,) if isinstance(self.link, str) else tuple(self.link))
        for name in LISTS:
            self._set(name, tuple(getattr(self, name)))
        if self.time == "virtual":
            self._check_virtual()
            self._set("root", self.root or HOST_ROOT)
        elif self.nodes or self.seed:
            raise UsageError("nodes and a seed are for virtual time", hint='time="virtual", or --time virtual')
        self._set("consoles", CONSOLES[self.time] if self.consoles is None else self.consoles)
        self._check()
        self._check_limits()
        # Another process has another working directory.
        if self.root and self.root != HOST_ROOT:
            self._set("root", str(Path(self.root).resolve()))
        self._set("disks", tuple(map(str, self.parsed_disks())))
        self._set("modules", tuple(map(str, self.parsed_modules())))

    def _check_types(self) -> None:
        """Refuse what a type checker does, and what would otherwise be taken for something else."""
        for name, words in (("time", get_args(Time)), ("clock", get_args(Stops))):
            if getattr(self, name) not in words:
                raise UsageError(f"no such {name}: {getattr(self, name)}", hint=f"one of: {', '.join(words)}")
        if not isinstance(self.memory_mib, int):
            raise UsageError(f"a guest with {self.memory_mib!r} MiB of memory", hint="a whole number: memory_mib=64")

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def _check(self) -> None:
        if self.root and self.disks:
            raise UsageError("a guest has one root: a directory or a disk", hint="without --root, or without --disk")
        if self.userspace not in {"", *USERSPACES}:
            raise UsageError(f"no such userspace: {self.userspace}", hint=f"one of: {', '.join(USERSPACES)}")
        if self.steps_bytes & (self.steps_bytes - 1) or not LEAST_STEPS_BYTES <= self.steps_bytes <= MOST_STEPS_BYTES:
            raise UsageError(
                f"a ring of {self.steps_bytes >> 20} MiB for a trace's steps",
                found=f"a power of two, {LEAST_STEPS_BYTES >> 20} to {MOST_STEPS_BYTES >> 20} MiB",
            )
        if self.root and not stat.S_ISDIR(files.mode_of(self.root_directory)):
            raise UsageError(f"no such directory: {self.root}", hint='root="host", or a directory')
        if self.modules and self.from_boot:
            raise UsageError("a stopped kernel loads no modules", hint="without modules, or without --from-boot")
        if self.commands and self.from_boot:
            raise UsageError("a stopped kernel runs no commands", hint="without -g, or without --from-boot")
        if self.commands and not (self.root or self.disks):
            raise UsageError("a command in the guest needs a root file system", hint='root="host", or --root host')
        if not 0 <= (self.consoles or 0) <= MOST_CONSOLES:
            raise UsageError(f"a guest has no {self.consoles} consoles", hint=f"{MOST_CONSOLES} at most")

    def _check_limits(self) -> None:
        check_times(
            boot_timeout_s=self.boot_timeout_s, most_s=self.most_s, timeout_s=self.timeout_s, positive=True
        )  # fmt: skip
        check_times(lease_s=self.lease_s, longest_s=MOST_DELAY_S)

    def _check_virtual(self) -> None:
        """Refuse what needs the time of this machine."""
        if self.disks:
            raise UsageError("a disk answers in real time", hint="--root DIRECTORY in virtual time")
        if self.from_boot:
            raise UsageError("a person under gdb takes real time", hint="--from-boot in real time")
        if self.link != ("auto",):
            raise UsageError(
                "in virtual time the link is inside the guest", hint="without --link; --node NAME for more"
            )
        if self.clock != "running":
            raise UsageError("in virtual time the clock is ours", hint='without clock="frozen", or --clock')
        if not 0 <= self.seed < 1 << 64:
            raise UsageError(f"no seed: {self.seed}", hint="0 to 2^64 - 1")
        nodes.nodes(self.nodes, Addresses())

    def start(self, name: str | None = None, *, opened: Image | None = None) -> "Lab":
        """Return a lab of this description; entering it boots the guest.

        :param name: the lab's name; one lab a name. Default: one of its own
        :param opened: the image that this names, where it is open already
        """
        from skblab.lab import Lab  # noqa: PLC0415 - a lab is made of its description

        return Lab(name, self, opened=opened)

    @property
    def image_path(self) -> Path | None:
        """The image's directory; None for the newest of *series* and *variant*."""
        assert not isinstance(self.image, Image)  # __post_init__() has its path
        return self.image

    @property
    def root_directory(self) -> Path:
        """The directory that *root* names; of a lab without one, the working directory."""
        return Path("/" if self.root == HOST_ROOT else self.root)

    def parsed_disks(self) -> tuple[Disk, ...]:
        """Return the guest's disks.

        :raises UsageError: one cannot be parsed
        """
        return tuple(Disk.parse(disk) for disk in self.disks)

    def parsed_modules(self) -> tuple[Module, ...]:
        """Return the modules to load.

        :raises UsageError: one is not there, or not a module
        """
        return tuple(Module.parse(module) for module in self.modules)
