"""How an image is made: options, flags, compiler, and the key that identifies them."""

import functools
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from skblab.errors import UsageError
from skblab.host import process
from skblab.image.corrections import FAULTS, MOVED, Fault

DEFAULT_SERIES = "6.12"
SERIES = ("6.12", "6.1", "7.3")

USERSPACES = ("ptrace", "seccomp")  # how a kernel runs its programs; arch/um/os-Linux/start_up.c

# The fragments of kernel/kconfig/ of each variant, in merge order.
VARIANTS: dict[str, tuple[str, ...]] = {
    "default": ("base", "net"),
    "kasan": ("base", "net", "lockdep", "kasan"),
    "lockdep": ("base", "net", "lockdep"),
    "kcov": ("base", "net", "kcov"),
    "debug": ("base", "net", "debug"),
    "hz1000": ("base", "net", "hz1000"),
}

# The agent patches the five NOPs at a function's entry; what it calls there may clobber every caller-saved register
# (-fno-ipa-ra). The next two keep arguments readable and backtraces complete. Location views are a sixth of the debug
# information and a fifteenth of the compiler's time, and gdb does not read them.
FLAGS = (
    "-fpatchable-function-entry=5", "-fno-ipa-ra", "-fno-ipa-sra", "-fno-optimize-sibling-calls",
    "-gno-variable-location-views",
)  # fmt: skip

# Increased when the making or the layout of images changes, so that older ones do not match.
LAYOUT = 5

NUMBER = re.compile(r"\d+")
OPTION_LINE = re.compile(r'CONFIG_\w+=(?:[ymn]|-?\d+|0x[0-9a-fA-F]+|".*")\s*')


@functools.cache
def kernel_dir() -> Path:
    """Return the directory of the guest's sources: in the package if installed, beside ``src`` in a checkout."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "kernel"
    return installed if installed.is_dir() else package.parents[1] / "kernel"


@dataclass(frozen=True)
class Recipe:
    """How images of one series and variant are made, apart from source and compiler; *own*: the user's fragments."""

    series: str
    variant: str
    fragments: tuple[Path, ...]
    own: tuple[Path, ...] = ()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """The faults for which the source is examined."""
        series = tuple(map(int, NUMBER.findall(self.series)))
        faults = (fault.of_series(series) for fault in FAULTS if self.variant.startswith(fault.variant))
        return tuple(fault for fault in faults if fault.corrections)

    @property
    def key(self) -> str:
        """Digest of the options, the flags, the corrections that a source of this series may get, and the layout."""
        options = sorted(wanted_options((*self.fragments, *self.own)).items())
        return hashlib.sha256(repr((LAYOUT, FLAGS, MOVED, self.faults, options)).encode()).hexdigest()[:16]


def recipe_for(series: str, variant: str, own: tuple[Path, ...] = ()) -> Recipe:
    """Return the recipe of a series' variant; the user's fragments become part of its name: ``default+mine``.

    :raises UsageError: no such variant, or a file is not a fragment
    """
    if variant not in VARIANTS:
        raise UsageError(f"no such variant: {variant}", hint=f"one of: {', '.join(VARIANTS)}")
    for fragment in own:
        _check_fragment(fragment)
    fragments = tuple(kernel_dir() / "kconfig" / f"{name}.config" for name in VARIANTS[variant])
    return Recipe(series, "+".join((variant, *(fragment.stem for fragment in own))), fragments, own)


def _check_fragment(path: Path) -> None:
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"no fragment of a kernel's configuration: {path}", found=str(error)) from None
    for number, line in enumerate(lines, 1):
        if line.strip() and not line.startswith("#") and not OPTION_LINE.fullmatch(line):
            raise UsageError(f"{path}:{number}: this is no option", found=line, hint="CONFIG_NAME=y, or a comment")


def compiler() -> str:
    """Return the first line of the compiler's --version."""
    return process.run(["gcc", "--version"], timeout_s=10).stdout.splitlines()[0]


def wanted_options(fragments: tuple[Path, ...]) -> dict[str, str]:
    """Return the options of fragments: CONFIG_X -> y, n, or a value; later fragments win."""
    wanted: dict[str, str] = {}
    for fragment in fragments:
        wanted |= parse_config(fragment.read_text())
    return wanted


def parse_config(text: str) -> dict[str, str]:
    """Return the options of a .config or a fragment; "is not set" is ``n``."""
    options = {}
    for line in text.splitlines():
        if line.startswith("CONFIG_"):
            name, _, value = line.partition("=")
            options[name] = value.rstrip()
        elif line.startswith("# CONFIG_") and line.endswith(" is not set"):
            options[line.split()[1]] = "n"
    return options


def refused(wanted: dict[str, str], config: dict[str, str]) -> list[str]:
    """Return the wanted options that .config lacks, including options that this kernel does not know."""
    return [name for name, value in wanted.items() if value != "n" and config.get(name, "n") != value]
