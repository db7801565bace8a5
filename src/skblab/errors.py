"""What can go wrong: what failed, on what, what was found, and what to do about it.

Every error carries those as data; the sentence a person reads is composed here, in one place, so that the command line,
the Python API and the tests see the same facts.
"""


class SkblabError(Exception):
    """A failure with its evidence and its remedy.

    :param what: one sentence: what failed, on what
    :param found: the evidence, possibly several lines (console tail, the compiler's own lines)
    :param hint: what to do about it, a command where there is one
    """

    exit_status = 1

    def __init__(self, what: str, *, found: str = "", hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.found = found
        self.hint = hint

    def __str__(self) -> str:
        parts = [self.what]
        if self.found:
            parts += [f"  {line}" for line in self.found.splitlines()]
        if self.hint:
            first, *rest = self.hint.splitlines()
            parts += [f"  hint: {first}", *(f"        {line}" for line in rest)]
        return "\n".join(parts)


class UsageError(SkblabError):
    """The caller asked for something that makes no sense; nothing was done."""

    exit_status = 2


class MissingPrerequisite(SkblabError):
    """This machine forbids or lacks something a lab needs."""

    exit_status = 3


class CannotWrite(SkblabError):
    """A file or a stream that cannot be written: which, and why."""


class ImageMissing(SkblabError):
    """No image answers the description; it has to be built first."""

    exit_status = 3


class ImageDamaged(SkblabError):
    """An image's files are not what was recorded when it was built."""


class ImageInUse(SkblabError):
    """An image that cannot be removed: a lab runs its kernel."""


class BuildFailed(SkblabError):
    """Building a kernel failed; nothing half-made was left behind."""


class UnknownFunction(UsageError):
    """No such function in the kernel, or none that can be stopped at (inlined, optimised away)."""


class RuleError(UsageError):
    """A rule or a filter that cannot be understood; ``found`` has the text, and a caret under the fault."""


class UnsupportedVerdict(UsageError):
    """A verdict that is not sound at a function: which, why, and the nearest function where it is."""


class PacketError(UsageError):
    """An edit came to something that is no packet; the packet is as it was."""


class PacketGone(UsageError):
    """A decision about a packet that is held no more."""


class LabNameTaken(SkblabError):
    """Another lab of this name is running."""


class NoSuchLab(UsageError):
    """No running lab of this name can be joined."""


class LabBusy(SkblabError):
    """Another controller has this lab's agent: who."""


class MconsoleRefused(SkblabError):
    """The guest's kernel refused a command of its management console; in its own words."""


class BootFailed(SkblabError):
    """The guest kernel did not become ready."""


class DiskError(SkblabError):
    """A disk image that no guest can use: why."""


class DiskInUse(DiskError):
    """Another lab or process has the disk: who, and how to end it."""


class GuestCommandFailed(SkblabError):
    """A command in the guest that cannot be started, or that has ended before its time."""


class NoSuchProgram(SkblabError):
    """A program that is not in the guest, or cannot be run there; the status is a shell's, 127 or 126."""

    exit_status = 127


class CallbackFailed(SkblabError):
    """A function of the caller's that was to be called for each packet raised; the first error is the cause."""

    def __init__(self, of: str, error: Exception) -> None:
        super().__init__(f"the callback of {of} raised {type(error).__name__}: {error}")


class GuestLost(SkblabError):
    """The guest kernel is gone."""

    exit_status = 128


class AgentDamaged(GuestLost):
    """The guest's kernel has written over what it shares with this machine; nothing of it can be trusted any more."""


class TraceError(UsageError):
    """A trace file that cannot be written or read, or a field that cannot be traced."""


class DebuggerError(SkblabError):
    """gdb could not be started, could not attach, refused a request, or is gone."""


class Timeout(SkblabError, TimeoutError):
    """A bounded wait ran out; the sentence says what it waited for."""
