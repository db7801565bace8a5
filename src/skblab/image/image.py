"""An image: a directory with a kernel, its debug info, its source, its configuration and the index of its functions."""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from skblab.errors import ImageDamaged, ImageMissing
from skblab.image.index import Function, FunctionIndex

MANIFEST = "manifest.json"
KERNEL = "vmlinux"
INDEX = "functions.sqlite"
CONFIG = "config"
SOURCE = "source"
RECORDED = (KERNEL, INDEX, CONFIG)
ENTRIES = {"files": {"size_bytes", "sha256"}, "corrections": {"outcome", "why"}}  # what the manifest's tables have
MADE_LATER = (
    "agent-*.ko",
    "initramfs-*.cpio",
    "members-*.json",
    "unwind-*.bin",
)  # made by newer skblabs; each has its digest beside it


@dataclass(frozen=True)
class Image:
    """One image. Made by ``skblab image build``; opened by its directory.

    ``release`` is the guest's ``uname -r``; ``series`` its first two numbers; ``recipe`` the key of the options and
    flags that it was built with; ``corrections`` the faults of UML for which its source was examined, each with its
    ``outcome`` (``applied``, ``not needed``, ``unknown``) and ``why``.
    """

    path: Path
    series: str
    variant: str
    release: str
    recipe: str
    corrections: dict[str, dict[str, str]]
    files: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> "Image":
        """Open the image in a directory after a quick check of its files.

        :raises ImageMissing: no such image
        :raises ImageDamaged: its files differ from its manifest
        """
        path = Path(path).resolve()
        try:
            recorded = json.loads((path / MANIFEST).read_text())
        except (FileNotFoundError, NotADirectoryError):
            raise ImageMissing(f"no image at {path}", hint="skblab image ls") from None
        except PermissionError as error:
            raise ImageDamaged(
                f"image {path.name} cannot be read by this user", found=str(error),
                hint=f"chmod -R a+rX {path}   (as its owner)",
            ) from None  # fmt: skip
        except (OSError, ValueError) as error:
            raise ImageDamaged(
                f"image {path.name}: {MANIFEST} cannot be read", found=str(error), hint=_again(path)
            ) from None
        image = cls(path=path, **_known(path, recorded))
        for name, about in image.files.items():
            size = _size(path / name)
            if size != about["size_bytes"]:
                found = "it is missing" if size is None else f"{size} bytes instead of {about['size_bytes']}"
                raise ImageDamaged(f"image {path.name} is damaged: {name}", found=found, hint=_again(path))
        return image

    @property
    def name(self) -> str:
        """The directory's name: series, variant, first digits of the key."""
        return self.path.name

    @property
    def kernel(self) -> Path:
        """The kernel: an ELF program with DWARF."""
        return self.path / KERNEL

    @property
    def source(self) -> Path:
        """The source files from which the kernel was built, as the debug info names them."""
        return self.path / SOURCE

    @property
    def config(self) -> Path:
        """The kernel's configuration."""
        return self.path / CONFIG

    @cached_property
    def config_text(self) -> str:
        """The kernel's configuration; undecodable bytes are replaced."""
        return self.config.read_text(errors="replace")

    def source_lines(self, file: str, line: int, *, around: int = 5) -> list[tuple[int, str]]:
        """Return (number, text) of the lines around a line of a source file; empty if the image lacks the file."""
        path = self.source / file
        if not file or not path.is_file():
            return []
        lines = path.read_text(errors="replace").splitlines()
        first = max(line - around, 1)
        return list(enumerate(lines[first - 1 : line + around], start=first))

    @cached_property
    def functions(self) -> FunctionIndex:
        """The index of the kernel's functions."""
        return FunctionIndex(self.path / INDEX)

    def with_functions(self, more: Iterable[Function], members: Callable[[], Mapping[int, tuple[str, ...]]]) -> "Image":
        """Return this image with the functions of loaded modules in its index.

        :param members: as FunctionIndex asks for
        """
        image = replace(self)
        image.__dict__["functions"] = FunctionIndex(self.path / INDEX, tuple(more), members)
        return image

    def check(self) -> list[str]:
        """Compare every file's digest with the recorded one; return the files without a recorded digest.

        :raises ImageDamaged: a file differs
        """
        for name, recorded in self.files.items():
            if digest(self.path / name) != recorded["sha256"]:
                raise self._damaged(name, _again(self.path))
        unrecorded = []
        made = sorted(path for pattern in MADE_LATER for path in self.path.glob(pattern))
        for path in (*made, self.source):
            if not digest_file(path).exists():
                unrecorded.append(path.name)
            elif digest_file(path).read_text().partition(" ")[0] != digest(path):
                raise self._damaged(path.name, f"rm {path}   (it is made again)" if path in made else _again(self.path))
        return unrecorded

    def _damaged(self, name: str, hint: str) -> ImageDamaged:
        return ImageDamaged(f"image {self.name} is damaged: {name}", found="its content has changed", hint=hint)


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


def _known(path: Path, recorded: object) -> dict[str, Any]:
    """Return the contents of an image's manifest.

    :raises ImageDamaged: it has other keys: another version of skblab has written it
    """
    wanted = {field.name for field in fields(Image)} - {"path"}
    if not isinstance(recorded, dict) or recorded.keys() != wanted:
        found = ", ".join(map(str, recorded)) if isinstance(recorded, dict) else type(recorded).__name__
        raise ImageDamaged(
            f"image {path.name}: {MANIFEST} was written by another version of skblab",
            found=f"it has: {found}; this skblab knows: {', '.join(sorted(wanted))}",
            hint=_again(path),
        )
    texts = all(isinstance(recorded[name], str) for name in wanted - ENTRIES.keys())
    if not texts or not all(_is_table(recorded[name], columns) for name, columns in ENTRIES.items()):
        raise ImageDamaged(f"image {path.name}: {MANIFEST} cannot be read", found="not of its form", hint=_again(path))
    return recorded


def _is_table(value: object, columns: set[str]) -> bool:
    return isinstance(value, dict) and all(isinstance(one, dict) and one.keys() == columns for one in value.values())


def digest(path: Path) -> str:
    """Return a file's SHA-256 in hex; for a directory, the digest of all names and digests in it."""
    if path.is_dir():
        return hashlib.sha256(b"".join(map(_entry, sorted(path.rglob("*"))))).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: Path) -> bytes:
    what = str(path.readlink()) if path.is_symlink() else digest(path) if path.is_file() else ""
    return os.fsencode(f"{path.name}\0{what}\n")


def digest_file(path: Path) -> Path:
    """Return the digest's file for a file that is not in the manifest; sha256sum(1) reads it."""
    return path.with_name(f"{path.name}.sha256")


def digest_line(path: Path, content: bytes) -> bytes:
    """Return the text of the digest's file."""
    return f"{hashlib.sha256(content).hexdigest()}  {path.name}\n".encode()


def describe_files(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the manifest's entries for an image's files."""
    return {
        name: {"size_bytes": (directory / name).stat().st_size, "sha256": digest(directory / name)} for name in RECORDED
    }


def _again(path: Path) -> str:
    return f"skblab image rm {path.name} && skblab image build"
