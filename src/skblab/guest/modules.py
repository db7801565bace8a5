"""The user's own kernel modules: loaded before anything else happens in the guest, and known by their functions."""

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

MOST = 100
TOLD = re.compile(r"module (\S+)((?: \.text\S*=0x[0-9a-f]+)*)")  # kernel/init/modules.c tell_sections()


@dataclass(frozen=True)
class Module:
    """A module's file, and the parameters that it is loaded with: ``["debug=1"]``."""

    file: Path
    parameters: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Module":
        """Return the module of ``FILE`` or ``FILE,NAME=VALUE,...``.

        :raises UsageError: there is no such file, or it is no module
        """
        file, *parameters = text.split(",")
        module = cls(files.typed(file).absolute(), tuple(parameters))
        if not module.file.is_file():
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
        """The module's own name, as lsmod prints it."""
        return self._facts["name"]

    @cached_property
    def _facts(self) -> dict[str, str]:
        """What its section .modinfo says (include/linux/moduleparam.h)."""
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
        """Look whether it was built for an image's kernel.

        :raises UsageError: it was built for another
        """
        release = self._facts["vermagic"].split()[0]
        if release != image.release:
            raise UsageError(
                f"the module {self.name} was built for Linux {release}, and {image.name} is {image.release}",
                found=str(self.file),
                hint=f"skblab module build {self.file.parent} --image {image.name}",
            )

    def functions(self, sections: dict[str, int]) -> list[Function]:
        """Return its functions, where they were loaded. Without debug info there are none."""
        return describe_module(self.file, sections)


def append(archive: Path, modules: tuple[Module, ...], target: Path) -> None:
    """Write the guest's first files to *target*, with modules behind them: archives may follow each other.

    :raises CannotWrite: there is no room for it
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


def sections_told(text: str) -> tuple[str, dict[str, int]] | None:
    """Return a module's name and where its code lies, where a word of the guest's init is about that."""
    found = TOLD.fullmatch(text)
    if found is None:
        return None
    return found[1], {name: int(at, 16) for name, at in (one.split("=") for one in found[2].split())}
