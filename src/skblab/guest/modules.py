"""The user's own kernel modules: loaded first in the guest, with functions that can be probed."""

import re
import stat
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from skblab import files
from skblab.errors import UsageError
from skblab.guest.initramfs import pack
from skblab.image.debuginfo import describe_module
from skblab.image.image import Image
from skblab.image.index import Function
from skblab.image.members import Members, members_of_module

MOST = 100
# kernel/module/main.c unknown_module_param_cb()
UNKNOWN = re.compile(r"^\[ *[0-9.]+\] (\w+): unknown parameter '([^']*)' ignored$", re.MULTILINE)
SECTIONS = re.compile(r"module (\S+)((?: \.text\S*=0x[0-9a-f]+)*)")  # kernel/init/modules.c tell_sections()


@dataclass(frozen=True)
class Module:
    """A module's file and its parameters: ``["debug=1"]``."""

    file: Path
    parameters: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Return the module of ``FILE`` or ``FILE,NAME=VALUE,...``.

        :raises UsageError: the file does not exist, or is not a module
        """
        file, *parameters = text.split(",")
        module = cls(files.typed(file).absolute(), tuple(parameters))
        if not stat.S_ISREG(files.mode_of(module.file)):
            raise UsageError(f"no such module: {file}", hint="skblab module build DIRECTORY makes one")
        if not module._facts.keys() >= {"name", "vermagic"}:
            raise UsageError(f"{file} is no kernel module: it has no .modinfo", hint="it is a .ko file, uncompressed")
        for parameter in parameters:
            if not re.fullmatch(r"\w+(=\S*)?", parameter):
                raise UsageError(f"a module's parameter: {parameter!r}", hint="FILE,NAME=VALUE,...")
        return module

    def __str__(self) -> str:
        return ",".join((str(self.file), *self.parameters))

    @property
    def name(self) -> str:
        """The module's name, as lsmod prints it."""
        return self._facts["name"]

    @cached_property
    def _facts(self) -> dict[str, str]:
        """The contents of its section .modinfo (include/linux/moduleparam.h)."""
        from elftools.common.exceptions import ELFError  # noqa: PLC0415
        from elftools.elf.elffile import ELFFile  # noqa: PLC0415

        try:
            with self.file.open("rb") as file:
                section = ELFFile(file).get_section_by_name(".modinfo")
                content = section.data() if section else b""
        except ELFError:
            return {}
        lines = (line.decode(errors="replace") for line in content.split(b"\0"))
        return {name: value for name, found, value in (line.partition("=") for line in lines) if found}

    def check(self, image: Image) -> None:
        """Check that it was built for an image's kernel.

        :raises UsageError: it was built for another kernel
        """
        release = self._facts["vermagic"].split()[0]
        if release != image.release:
            raise UsageError(
                f"the module {self.name} was built for Linux {release}, and {image.name} is {image.release}",
                found=str(self.file),
                hint=f"skblab module build {self.file.parent} --image {image.name}",
            )

    def functions(self, sections: dict[str, int]) -> list[Function]:
        """Return its functions with their addresses; without debug info, none."""
        return describe_module(self.file, sections)

    def members(self, sections: dict[str, int]) -> Members:
        """Return the members of structures in its data that point to its functions."""
        return members_of_module(self.file, sections)


def check_parameters(modules: tuple[Module, ...], log: str) -> None:
    """Refuse a parameter that the kernel has ignored: *log* is its log once the modules are loaded.

    :raises UsageError: a module has no such parameter
    """
    files = {module.name: module.file for module in modules}
    for name, parameter in UNKNOWN.findall(log):
        if name in files:
            raise UsageError(f"the module {name} has no parameter {parameter}", hint=f"modinfo -p {files[name]}")


def append(archive: Path, modules: tuple[Module, ...], target: Path) -> None:
    """Write the guest's initramfs to *target*, followed by an archive of the modules: archives can be concatenated.

    :raises CannotWrite: *target* cannot be written
    """
    entries = [("modules", stat.S_IFDIR | 0o755, b"", (0, 0))]
    for number, module in enumerate(modules):
        orders = " ".join((module.name, *module.parameters))
        entries += [
            (f"modules/{number:02}", stat.S_IFREG | 0o644, module.file.read_bytes(), (0, 0)),
            (f"modules/{number:02}.orders", stat.S_IFREG | 0o644, orders.encode(), (0, 0)),
        ]
    with files.whole(target) as file:
        file.write(archive.read_bytes() + pack(entries))


def parse_sections(text: str) -> tuple[str, dict[str, int]] | None:
    """Return a module's name and its code sections' addresses from init's message; None for other messages."""
    found = SECTIONS.fullmatch(text)
    if found is None:
        return None
    return found[1], {name: int(at, 16) for name, at in (one.split("=") for one in found[2].split())}
