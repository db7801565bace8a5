"""Options that several commands share."""

import argparse
import glob
import re
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from skblab.cli.complaints import add_strict
from skblab.errors import UsageError
from skblab.host.links import GRAMMAR, KINDS
from skblab.image.recipe import DEFAULT_SERIES, USERSPACES, VARIANTS

if TYPE_CHECKING:
    from skblab.image.image import Image
    from skblab.lab import Lab
    from skblab.spec import LabSpec


A_TIME = re.compile(r"(\d+(?:\.\d+)?)(s|m|h|)")


class OfNewLab(argparse.Action):
    """Take an option that describes a lab, and note that it was given: a lab that is up is as it is."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002 - argparse's own
        namespace: argparse.Namespace,
        values: object,
        option_string: str | None = None,
    ) -> None:
        """Store the value; where the default is a list, add it."""
        many = isinstance(self.default, list)
        setattr(namespace, self.dest, [*getattr(namespace, self.dest), values] if many else values)
        namespace.describing = [*getattr(namespace, "describing", ()), option_string]


def complete(action: argparse.Action, candidates: Callable[..., Iterable[str]]) -> None:
    """Let a shell complete an argument's value; *candidates* is called with the arguments typed so far."""
    action.completer = candidates  # type: ignore[attr-defined] # argcomplete's convention


def function_names(prefix: str, parsed_args: argparse.Namespace, **_: object) -> list[str]:
    """Return the kernel's functions whose names begin with a prefix."""
    return chosen_image(parsed_args).functions.names(f"{glob.escape(prefix)}*")


def chosen_image(arguments: argparse.Namespace) -> "Image":
    """Return the image that the options name."""
    from skblab.image.store import find_image, open_named  # noqa: PLC0415

    return open_named(arguments.image) if arguments.image else find_image(arguments.series, arguments.variant)


def image_names(**_: object) -> list[str]:
    """Return the names of the images."""
    from skblab.image.store import list_images  # noqa: PLC0415

    return [image.name for image in list_images()[0]]


def add_image_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a kernel."""
    group = parser.add_argument_group("which kernel")
    group.add_argument(
        "--series",
        action=OfNewLab,
        default=DEFAULT_SERIES,
        help="kernel series: 6.12, 6.1 or 7.3 (default: %(default)s)",
    )
    group.add_argument("--variant", action=OfNewLab, default="default", choices=sorted(VARIANTS),
                       help="set of kernel options")  # fmt: skip
    image = group.add_argument(
        "--image",
        action=OfNewLab,
        metavar="IMAGE",
        help="an image's name or directory, instead of --series and --variant",
    )
    complete(image, image_names)


def lab_names(**_: object) -> list[str]:
    """Return the names of the labs that can be joined."""
    from skblab.host import registry  # noqa: PLC0415

    return [owner.name for owner in registry.running() if owner.kept]


def add_lab_options(parser: argparse.ArgumentParser, *, joins: bool = True) -> None:
    """Add the options of every command that starts a lab, or *joins* one that is up."""
    add_image_options(parser)
    group = parser.add_argument_group("the lab")
    if joins:
        joined = group.add_argument(
            "--lab", metavar="LAB", help="a lab that is up (default: a new one, which ends with the command)"
        )
        complete(joined, lab_names)
        group.add_argument("--name", action=OfNewLab, help="the new lab's name (default: an unused one)")
    link = group.add_argument(
        "--link",
        action=OfNewLab,
        default=[],
        dest="links",
        metavar="LINK",
        help=f"what connects client and guest: {GRAMMAR}; may be given several times (default: one tap "
        "if /dev/net/tun can be opened, else one veth pair)",
    )
    complete(link, lambda **_: (*KINDS, *(f"on={name}" for name in lab_names())))  # fmt: skip
    group.add_argument("--memory", action=OfNewLab, type=int, default=64, metavar="MIB",
                       help="the guest's memory (default: %(default)s); at most 1984 for rules and traces")  # fmt: skip
    _add_time_options(group)
    add_strict(parser)


def a_time(text: str) -> float:
    """Return a time in seconds: of ``90``, ``1.5s``, ``5m``, ``2h``."""
    found = A_TIME.fullmatch(text)
    if not found:
        raise argparse.ArgumentTypeError(f"not a time: {text!r}; 90, 1.5s, 5m, 2h")
    return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]


def _add_time_options(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--time", action=OfNewLab, choices=("real", "virtual"), default="real",
                       help="virtual: time passes in the guest only while something waits, and as fast as it can; "
                       "clients run in the guest, too (default: %(default)s)")  # fmt: skip
    group.add_argument("--clock", action=OfNewLab, choices=("running", "frozen"), default="running",
                       help="the guest's clock while gdb has stopped its kernel: running, it jumps by the length of "
                       "the stop, and timers end at once (default: %(default)s)")  # fmt: skip
    group.add_argument("--seed", action=OfNewLab, type=int, default=0, metavar="N",
                       help="determines all randomness of a guest in virtual time (default: %(default)s)")  # fmt: skip
    group.add_argument("--most", type=a_time, default=3600.0, metavar="TIME",
                       help="how much virtual time a wait without limit may take: 90, 5m (default: 1h)")  # fmt: skip
    group.add_argument("--timeout", type=a_time, metavar="TIME",
                       help="how long a guest in virtual time may run on this machine (default: any)")  # fmt: skip
    group.add_argument("--node", action=OfNewLab, default=[], dest="nodes", metavar="NAME",
                       help="one more machine on the link, in a guest in virtual time, with an address and this name; "
                       "may be given several times; -g NAME:CMD starts a command on it")  # fmt: skip


def add_guest_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of what runs in the guest."""
    group = parser.add_argument_group("in the guest")
    group.add_argument("--root", action=OfNewLab, default="", metavar="DIR",
                       help="a directory whose files the guest's programs see, or host for this machine's; "
                       "what they write stays in memory")  # fmt: skip
    group.add_argument("--userspace", action=OfNewLab, default="", choices=USERSPACES,
                       help="how the kernel runs the guest's programs: seccomp is faster, needs Linux 7.x, and "
                       "trusts them with the guest's whole memory (default: seccomp with --root host where the kernel "
                       "has it, else ptrace)")  # fmt: skip
    group.add_argument("--disk", action=OfNewLab, default=[], metavar="FILE[,BACKING]", dest="disks",
                       help="boot from a disk image, or from a COW file, which is made if it does not exist; "
                       "may be given several times")  # fmt: skip
    group.add_argument("--module", action=OfNewLab, default=[], metavar="FILE[,NAME=VALUE]...", dest="modules",
                       help="load your kernel module (skblab module build); may be given several times")  # fmt: skip
    group.add_argument("--consoles", action=OfNewLab, type=int, metavar="N",
                       help="number of virtual consoles, for skblab console (default: 1; in virtual time 0, but for "
                       "skblab up)")  # fmt: skip
    group.add_argument("-g", "--guest", action="append", default=[], metavar="CMD", dest="guest_commands",
                       help="start CMD in the guest first, and wait until it listens on a TCP port; of udp:CMD, until "
                       "it binds a UDP socket; may be given several times")  # fmt: skip


def lab_from(arguments: argparse.Namespace) -> "Lab":
    """Return the lab that the options describe, not yet entered.

    :raises UsageError: options contradict one another
    """
    from skblab.lab import Lab  # noqa: PLC0415

    if getattr(arguments, "lab", None):
        if describing := getattr(arguments, "describing", ()):
            raise UsageError(
                f"lab {arguments.lab} is up, and stays as it is: {describing[0]} describes a new one",
                hint=f"without {describing[0]}, or without a lab's name: a new lab ends with the command",
            )
        if getattr(arguments, "from_boot", False):
            raise UsageError("a lab that is up has booted already", hint="without --from-boot, or without a lab's name")
        if getattr(arguments, "guest_commands", ()):
            raise UsageError("a lab that is up has its guest's commands already", hint="give -g to skblab up")
        return Lab.join(
            arguments.lab,
            lease_s=getattr(arguments, "lease", 0.0),
            most_s=getattr(arguments, "most", 3600.0),
            timeout_s=getattr(arguments, "timeout", None),
        )
    return spec_from(arguments).start(getattr(arguments, "name", None))


def spec_from(arguments: argparse.Namespace) -> "LabSpec":
    """Return the description of the lab that the options describe.

    :raises UsageError: options contradict one another
    """
    from skblab.spec import LabSpec  # noqa: PLC0415

    return LabSpec(
        image=chosen_image(arguments),
        link=arguments.links or "auto",
        root=getattr(arguments, "root", ""),
        userspace=getattr(arguments, "userspace", ""),
        disks=getattr(arguments, "disks", ()),
        modules=getattr(arguments, "modules", ()),
        consoles=getattr(arguments, "consoles", None),
        commands=getattr(arguments, "guest_commands", ()),
        memory_mib=getattr(arguments, "memory", 64),
        from_boot=getattr(arguments, "from_boot", False),
        steps_bytes=getattr(arguments, "ring", 64) << 20,
        lease_s=getattr(arguments, "lease", 0.0),
        time=getattr(arguments, "time", "real"),
        seed=getattr(arguments, "seed", 0),
        clock=getattr(arguments, "clock", "running"),
        nodes=getattr(arguments, "nodes", ()),
        most_s=getattr(arguments, "most", 3600.0),
        timeout_s=getattr(arguments, "timeout", None),
    )
