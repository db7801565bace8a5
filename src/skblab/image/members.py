"""Which members of the kernel's structures point to a function: ``net_device_ops.ndo_start_xmit`` to ``veth_xmit()``.

A member says what its caller expects of the function (agent/contracts.py). The initialised data of a kernel or a module
says which functions there are; what code assigns is not found.
"""

import functools
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skblab.errors import CannotWrite, ImageDamaged
from skblab.image.debuginfo import run_gdb, symbols_in_sections
from skblab.image.image import Image, digest_file
from skblab.image.module import keep

FILE = "members-1.json"
IN_GDB = Path(__file__).with_name("members_in_gdb.py")
POINTER_BYTES, FLAGS_BYTES = 8, 4

# Each with the member that points to a function which takes over its packet.
FUNCTIONS = {
    "packet_type": "func",
    "net_protocol": "handler",
    "inet6_protocol": "handler",
    "xfrm_tunnel": "handler",
    "net_device_ops": "ndo_start_xmit",
}
# An extension header's handler (destination options, routing, fragment) gives its packet back for the next header.
WITH_FLAGS, FLAGS, FINAL = "inet6_protocol", "flags", 0x2  # include/net/protocol.h INET6_PROTO_FINAL

Members = Mapping[int, tuple[str, ...]]
"""By a function's address: ``("net_device_ops.ndo_start_xmit",)``."""
Read = Callable[[str, int, int], int]
"""Returns the number that stands in a section at an address, of so many bytes; 0 where none stands there."""


@dataclass(frozen=True)
class Variable:
    """A variable: its name, its section, its address as nm prints it, its size."""

    name: str
    section: str
    address: int
    size_bytes: int


def members_of(image: Image) -> Members:
    """Return the members that point to functions of an image's kernel, and of the modules that are loaded in it.

    The kernel's are read when they are first asked for, and kept in the image's directory, if that can be written.

    :raises BuildFailed: gdb refused
    :raises ImageDamaged: the file there cannot be read
    """
    return {**_of_kernel(image.path, image.kernel), **image.functions.members}


def ensure_members(directory: Path, kernel: Path) -> Path:
    """Return the file of the members of a kernel; write it to the image's directory first if it does not exist.

    :raises CannotWrite: the directory cannot be written
    """
    path = directory / FILE
    if not (path.exists() and digest_file(path).exists()):
        keep(json.dumps(_of_program(kernel, _linked(kernel))).encode(), path)
    return path


def members_of_module(module: Path, sections: Mapping[str, int]) -> Members:
    """Return the members in a module's data that point to its functions.

    :param sections: the addresses of its code sections: ``{".text": 0x64400000}``
    """
    return _of_program(module, _relocated(module, sections))


@functools.lru_cache(maxsize=8)
def _of_kernel(directory: Path, kernel: Path) -> Members:
    try:
        file = ensure_members(directory, kernel)
    except CannotWrite:  # another user's image, made by an older skblab
        return _of_program(kernel, _linked(kernel))
    try:
        return {int(address): tuple(members) for address, members in json.loads(file.read_text()).items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise ImageDamaged(
            f"image {directory.name} is damaged: {FILE}", found=str(error), hint=f"rm {file}   (it is made again)"
        ) from None


def _of_program(program: Path, read: Read) -> Members:
    """Return the members that point somewhere in the variables of a kernel or a module."""
    variables = [
        Variable(name, section, address, size)
        for (name, address, size), section in symbols_in_sections(program, "OBJECT")
    ]
    found: defaultdict[int, set[str]] = defaultdict(set)
    for name, size_bytes, structure, offsets in _ask_gdb(program, variables):
        for one in variables:
            if (one.name, one.size_bytes) != (name, size_bytes):
                continue
            if structure == WITH_FLAGS and not read(one.section, one.address + offsets[FLAGS], FLAGS_BYTES) & FINAL:
                continue
            member = FUNCTIONS[structure]
            function = read(one.section, one.address + offsets[member], POINTER_BYTES)
            found[function].add(f"{structure}.{member}")
    return {function: tuple(sorted(members)) for function, members in found.items() if function}


def _ask_gdb(program: Path, variables: list[Variable]) -> list[tuple[str, int, str, dict[str, int]]]:
    """Return which variables, of how many bytes, are of which structure, with the offsets of its members."""
    wanted = {structure: [member] for structure, member in FUNCTIONS.items()}
    wanted[WITH_FLAGS].append(FLAGS)
    with tempfile.TemporaryDirectory() as scratch:
        request, answer = Path(scratch, "request"), Path(scratch, "answer")
        listed = [(one.name, one.size_bytes) for one in variables]
        request.write_text(json.dumps({"members": wanted, "variables": listed}))
        run_gdb(program, "-x", IN_GDB, SKBLAB_MEMBERS_REQUEST=str(request), SKBLAB_MEMBERS_ANSWER=str(answer))
        return [(name, size, structure, offsets) for name, size, structure, offsets in json.loads(answer.read_text())]


def _linked(kernel: Path) -> Read:
    """Return what reads a linked program, whose pointers stand in its file."""

    def read(_: str, address: int, size_bytes: int) -> int:
        for start, end, offset in segments:
            if start <= address and address + size_bytes <= end:
                with kernel.open("rb") as file:
                    file.seek(offset + address - start)
                    return int.from_bytes(file.read(size_bytes), "little")
        return 0  # in .bss

    from elftools.elf.elffile import ELFFile  # noqa: PLC0415 - 60 ms

    with kernel.open("rb") as file:
        heads = [segment.header for segment in ELFFile(file).iter_segments("PT_LOAD")]
    segments = [(head.p_vaddr, head.p_vaddr + head.p_filesz, head.p_offset) for head in heads]
    return read


def _relocated(module: Path, sections: Mapping[str, int]) -> Read:
    """Return what reads a module, whose pointers the kernel writes when it loads it (.rela.data: symbol and addend)."""

    def read(section: str, address: int, size_bytes: int) -> int:
        begin, content = contents.get(section, (0, b""))
        offset = address - begin
        pointer = pointers.get((section, offset))
        return int.from_bytes(content[offset : offset + size_bytes], "little") if pointer is None else pointer

    from elftools.elf.elffile import ELFFile  # noqa: PLC0415
    from elftools.elf.relocation import RelocationSection  # noqa: PLC0415

    pointers: dict[tuple[str, int], int] = {}
    contents: dict[str, tuple[int, bytes]] = {}  # with the address that nm adds, which may not be 0
    with module.open("rb") as file:
        elf = ELFFile(file)
        for section in elf.iter_sections():
            if section.name.startswith((".data", ".rodata")):
                contents[section.name] = (section["sh_addr"], section.data())
            if not isinstance(section, RelocationSection) or not section.name.startswith(
                (".rela.data", ".rela.rodata")
            ):
                continue
            symbols = elf.get_section(section["sh_link"])
            for one in section.iter_relocations():
                symbol = symbols.get_symbol(one["r_info_sym"])
                home = symbol["st_shndx"]
                address = sections.get(elf.get_section(home).name) if isinstance(home, int) else None
                if address is not None:
                    place = (section.name.removeprefix(".rela"), one["r_offset"])
                    pointers[place] = address + symbol["st_value"] + one["r_addend"]
    return read
