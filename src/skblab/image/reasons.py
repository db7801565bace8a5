"""Drop reasons by name: enum skb_drop_reason in this image's source."""

import re
from functools import lru_cache
from pathlib import Path

from skblab.errors import RuleError
from skblab.image.image import Image

HEADERS = ("include/net/dropreason-core.h", "include/net/dropreason.h", "include/linux/skbuff.h")
ENUM = re.compile(r"enum skb_drop_reason \{(.*?)\};", re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
ENTRY = re.compile(r"^\s*(SKB_\w+)\s*(?:=\s*(\w+))?,", re.MULTILINE)
PREFIX = "SKB_DROP_REASON_"
NOT_SPECIFIED = "NOT_SPECIFIED"
CONSUMED = "SKB_CONSUMED"
MOST = (1 << 31) - 1  # of an enum


@lru_cache(maxsize=8)
def reasons(source: Path) -> dict[str, int]:
    """Return the drop reasons of a kernel's source: name without prefix -> number."""
    for header in HEADERS:
        path = source / header
        found = ENUM.search(path.read_text()) if path.exists() else None
        if found:
            break
    else:
        return {}
    numbers: dict[str, int] = {}
    number = 0
    for name, value in ENTRY.findall(COMMENT.sub("", found.group(1))):
        number = int(value, 0) if value.isdecimal() else number
        numbers[name.removeprefix(PREFIX)] = number
        number += 1
    return numbers


def drop_reason(image: Image, name: str) -> int:
    """Return the number of a drop reason, given by name or number; "" is NOT_SPECIFIED.

    :raises RuleError: this kernel has no such reason
    """
    known = reasons(image.source)
    first, end = known.get(NOT_SPECIFIED, 1), known.get("MAX", MOST + 1)  # a drop's: the kernel warns about others
    if name.isdecimal():
        if not first <= int(name) < end:
            raise RuleError(f"Linux {image.release} has no drop reason {name}", found=f"{first} to {end - 1}")
        return int(name)
    wanted = (name or NOT_SPECIFIED).upper().removeprefix(PREFIX)
    if not first <= known.get(wanted, 0) < end:
        near = ", ".join(one for one in known if wanted[:4] in one and first <= known[one] < end)
        raise RuleError(f"Linux {image.release} has no drop reason {name}", found=f"near: {near}" if near else "")
    return known[wanted]
