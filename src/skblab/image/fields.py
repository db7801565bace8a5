"""Find fields named as in C, ``skb->dev->name``, in this kernel's structures."""

import difflib
import functools
import ipaddress
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skblab.errors import TraceError
from skblab.host import process
from skblab.host.gdb import find_gdb
from skblab.image.image import Image

IN_GDB = Path(__file__).with_name("fields_in_gdb.py")
EXPRESSION = re.compile(r"skb((?:\s*(?:->|\.)\s*\w+)+)\s*")
MEMBER = re.compile(r"(?:->|\.)\s*(\w+)")


@dataclass(frozen=True)
class Field:
    """One value, reached through pointers.

    :param offsets: in bytes; there is a pointer at each but the last
    :param kind: ``unsigned``, ``signed``, ``pointer``, ``text``, ``bytes``; in network byte order ``network``, ``port``
        or
        ``address``
    :param bits: width of a bit field, which begins at bit *shift*; else 0
    """

    expression: str
    offsets: tuple[int, ...]
    size_bytes: int
    kind: str
    bits: int = 0
    shift: int = 0

    def value(self, data: bytes) -> int | str:
        """Return the value of its bytes."""
        if self.kind == "text":
            return data.split(b"\0")[0].decode(errors="replace")
        if self.kind == "bytes":
            return data.hex()
        if self.kind == "network":
            return f"0x{data.hex()}"
        if self.kind == "port":
            return int.from_bytes(data)
        if self.kind == "address":
            return str(ipaddress.ip_address(data))
        number = int.from_bytes(data, "little", signed=self.kind == "signed" and not self.bits)
        if self.bits:
            number = number >> self.shift & ((1 << self.bits) - 1)
        return f"{number:#x}" if self.kind == "pointer" else number


def resolve_fields(image: Image, expressions: Sequence[str]) -> list[Field]:
    """Return the fields that expressions name, by gdb from the kernel's debug info.

    :raises TraceError: an expression is malformed, or names no member
    """
    if not expressions:
        return []
    for expression in expressions:
        if not EXPRESSION.fullmatch(expression):
            raise TraceError(
                f'"{expression}" is no field of a packet', found="members of a struct sk_buff", hint="skb->dev->name"
            )
    return list(_resolved(image.kernel, tuple(expressions)))


@functools.lru_cache(maxsize=64)
def _resolved(kernel: Path, expressions: tuple[str, ...]) -> tuple[Field, ...]:
    paths = [MEMBER.findall(expression) for expression in expressions]
    gdb = find_gdb()
    argv: list[process.Argument] = [*gdb.argv, "-nx", "-batch", "-x", IN_GDB, kernel]
    done = process.run(argv, env=gdb.env | {"SKBLAB_FIELDS": json.dumps(paths)}, timeout_s=60)
    if done.returncode or not done.stdout:
        raise TraceError("gdb could not look fields up", found=done.stderr.strip()[-500:], hint="skblab doctor")
    fields = []
    for expression, found in zip(expressions, json.loads(done.stdout), strict=True):
        if "error" in found:
            near = difflib.get_close_matches(MEMBER.findall(expression)[-1], found.get("near", []))
            raise TraceError(
                f"{expression}: {found['error']}", found=f"near: {', '.join(near)}" if near else "", hint="skb->len"
            )
        fields.append(
            Field(expression, tuple(found["offsets"]), found["bytes"], found["kind"], found["bits"], found["shift"])
        )
    return tuple(fields)
