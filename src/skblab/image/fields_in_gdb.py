"""Run by gdb in batch mode on a kernel: find fields named as in C. Imports gdb and the standard library only."""

import json
import os
import sys

import gdb

BIG_ENDIAN = {"__be16", "__be32", "__be64", "__sum16"}


def find(kind: gdb.Type, name: str) -> tuple[gdb.Type, int, int]:
    """Return a member's type, its offset in bits, and its width if it is a bit field (else 0); search unnamed members.

    :raises KeyError: no such member
    """
    for field in kind.fields():
        if field.name == name:
            return field.type, field.bitpos, field.bitsize
        if not field.name and field.type.strip_typedefs().code in {gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION}:
            try:
                found, place, bits = find(field.type.strip_typedefs(), name)
            except KeyError:
                continue
            return found, field.bitpos + place, bits
    raise KeyError(name)


def resolve(path: list[str]) -> dict[str, object]:
    """Follow members from a struct sk_buff; return the value's offsets behind pointers, and its kind."""
    kind = gdb.lookup_type("struct sk_buff")
    offsets, place, bits, network = [], 0, 0, False
    for number, name in enumerate(path):
        if kind.code == gdb.TYPE_CODE_PTR:
            offsets.append(place // 8)
            kind, place = kind.target().strip_typedefs(), 0
        if kind.code not in {gdb.TYPE_CODE_STRUCT, gdb.TYPE_CODE_UNION}:
            return {"error": f"{'->'.join(['skb', *path[:number]])} is no structure: it is {kind}"}
        try:
            kind, offset, bits = find(kind, name)
        except KeyError:
            return {
                "error": f"{kind} has no member {name}",
                "near": [field.name for field in kind.fields() if field.name],
            }
        network = _is_big_endian(kind)
        kind = kind.strip_typedefs()
        place += offset
    text = kind.code == gdb.TYPE_CODE_ARRAY and kind.target().strip_typedefs().sizeof == 1
    return {
        "offsets": [*offsets, place // 8],
        "bytes": kind.sizeof,
        "bits": bits,
        "shift": place % 8,
        "kind": (
            "text"
            if text and "char" in str(kind.target().strip_typedefs().unqualified())
            else _network_kind(kind, path[-1])
            if network
            else _kind(kind)
        ),
        "type": str(kind),
    }


def _is_big_endian(kind: gdb.Type) -> bool:
    """Whether a type is in network byte order (include/uapi/linux/types.h)."""
    while kind.code == gdb.TYPE_CODE_TYPEDEF:
        if str(kind.unqualified()) in BIG_ENDIAN:
            return True
        kind = kind.target()
    return False


def _network_kind(kind: gdb.Type, name: str) -> str:
    """Return how a number in network byte order is printed: as a port, an address, or hexadecimal."""
    if kind.sizeof == 2 and name.endswith(("port", "source", "dest")):
        return "port"
    return "address" if kind.sizeof == 4 and name.endswith(("addr", "gw4")) else "network"


def _kind(kind: gdb.Type) -> str:
    if str(kind.unqualified()) == "struct in6_addr":
        return "address"
    if kind.code == gdb.TYPE_CODE_PTR:
        return "pointer"
    if kind.code in {gdb.TYPE_CODE_INT, gdb.TYPE_CODE_ENUM, gdb.TYPE_CODE_BOOL, gdb.TYPE_CODE_CHAR}:
        return "signed" if kind.code == gdb.TYPE_CODE_INT and kind.is_signed else "unsigned"
    return "bytes"


try:
    sys.stdout.write(json.dumps([resolve(path) for path in json.loads(os.environ["SKBLAB_FIELDS"])]))
except BaseException as error:  # noqa: BLE001 - gdb's batch mode would continue and exit with status 0
    sys.stderr.write(f"{type(error).__name__}: {error}\n")
    gdb.execute("quit 1")
