"""Every error: what failed, on what, what was found, and a hint.

An error carries those as data; its text is composed here only, so that the command line, the Python API and the tests
see the same facts.
"""

LONGEST_S = 1e9  # 31 years: no wait and no limit is longer
UNFIRED = 118  # the exit status where a rule never fired; below 128, as cli/complaints.py STATUS


class SkblabError(Exception):
    """A failure with its evidence and a hint.

    :param what: one sentence: what failed, on what
    :param found: the evidence, possibly several lines (console tail, the compiler's own lines)
    :param hint: what to do about it, a command if there is one
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
    """The request makes no sense; nothing was done."""

    exit_status = 2


class MissingPrerequisite(SkblabError):
    """This machine forbids or lacks something a lab needs."""

    exit_status = 3


class CannotWrite(SkblabError):
    """A file or a stream cannot be written."""


class ImageMissing(SkblabError):
    """No such image: it has to be built first."""

    exit_status = 3


class ImageDamaged(SkblabError):
    """An image's files differ from what its build recorded."""


class ImageInUse(SkblabError):
    """The image cannot be removed: a lab is running its kernel."""


class BuildFailed(SkblabError):
    """Building a kernel failed; the store is unchanged."""


class UnknownFunction(UsageError):
    """The kernel has no such function, or the function has no entry (inlined, optimised away)."""


class RuleError(UsageError):
    """A rule or a filter cannot be parsed; ``found`` has the text, and a caret under the fault."""


class UnsupportedVerdict(UsageError):
    """A verdict is not sound at a function: why, and the nearest function where it is."""


class PacketError(UsageError):
    """The result of an edit is not a packet; the packet is unchanged."""


class PacketGone(UsageError):
    """A decision on a packet that is no longer held."""


class LabNameTaken(SkblabError):
    """Another lab of this name is running."""


class NoSuchLab(UsageError):
    """No running lab has this name, or it cannot be joined."""


class LabBusy(SkblabError):
    """Another controller is using this lab's agent."""


class MconsoleRefused(SkblabError):
    """The guest's kernel refused an mconsole command; ``what`` quotes its answer."""


class BootFailed(SkblabError):
    """The guest kernel did not become ready."""


class DiskError(SkblabError):
    """A disk image cannot be used."""


class DiskInUse(DiskError):
    """Another lab or process has locked the disk."""


class GuestCommandFailed(SkblabError):
    """A command in the guest cannot be started, or has ended too early."""


class NoSuchProgram(SkblabError):
    """The guest has no such program, or cannot execute it; exit status 127 or 126, as a shell's."""

    exit_status = 127


class CallbackFailed(SkblabError):
    """A callback of the caller's raised; ``__cause__`` is its first error."""

    def __init__(self, of: str, error: Exception) -> None:
        super().__init__(f"the callback of {of} raised {type(error).__name__}: {error}")


def to_be_raised(error: BaseException) -> Exception:
    """Return an error of a callback's, to be raised where that ends: a SystemExit would end more than it.

    pytest's own fail() and skip() raise no Exception, either.
    """
    if isinstance(error, Exception):
        return error
    wrapped = RuntimeError(f"{type(error).__name__}({error})")
    wrapped.__cause__ = error
    return wrapped


def check_lists(**fields: object) -> None:
    """Refuse one string where a list of strings is wanted: it is a sequence, too, of letters.

    :raises UsageError: one is a string
    """
    for name, given in fields.items():
        if isinstance(given, str):
            raise UsageError(f"{name} is a list, not one string: {given}", hint=f"{name}=[{given!r}]")


def check_times(*, longest_s: float = LONGEST_S, positive: bool = False, **times: float | None) -> None:
    """Refuse times that are negative, not a number, or too long for a clock; None is no limit.

    :param positive: 0 is refused, too
    :raises UsageError: one is so
    """
    for name, given in times.items():
        if given is not None and not (0 <= given <= longest_s and (given or not positive)):
            least = "more than 0, at most" if positive else "0 to"
            raise UsageError(f"no such time: {name}={given:g}", found=f"{least} {longest_s:g} s")


class GuestLost(SkblabError):
    """The guest's kernel has ended."""

    exit_status = 128


class AgentDamaged(GuestLost):
    """The guest's kernel has overwritten the memory that it shares with skblab; its contents cannot be trusted."""


class EventsLost(SkblabError):
    """More packets met a rule at once than the ring of events has room for."""


class TraceError(UsageError):
    """A trace file cannot be written or read, or a field cannot be traced."""


class DebuggerError(SkblabError):
    """gdb could not be started, could not attach, refused a request, or has ended."""


class Timeout(SkblabError, TimeoutError):
    """A bounded wait timed out; the text says what was waited for."""
