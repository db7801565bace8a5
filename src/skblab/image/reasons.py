"""Drop reasons by name: enum skb_drop_reason in this image's source, and those of its subsystems."""

import re
from functools import lru_cache
from pathlib import Path

from skblab.errors import RuleError
from skblab.image.image import Image

HEADERS = ("include/net/dropreason-core.h", "include/net/dropreason.h", "include/linux/skbuff.h")
# Reasons of subsystems: each list begins behind its subsystem's number (include/net/dropreason.h), in the upper half.
SUBSYSTEMS_HEADER = "include/net/dropreason.h"
SUBSYSTEM = re.compile(r"^\s*SKB_DROP_REASON_SUBSYS_(\w+),", re.MULTILINE)
SUBSYS_SHIFT = 16
LISTS = {  # subsystem -> header, the macro that lists its reasons, what precedes each there
    "MAC80211_UNUSABLE": ("net/mac80211/drop.h", "MAC80211_DROP_REASONS_UNUSABLE", ""),
    "MAC80211_MONITOR": ("net/mac80211/drop.h", "MAC80211_DROP_REASONS_MONITOR", ""),
    "OPENVSWITCH": ("net/openvswitch/drop.h", "OVS_DROP_REASONS", ""),
    "QDISC": ("include/net/dropreason-qdisc.h", "DEFINE_QDISC_DROP_REASON", "QDISC_DROP_"),
}
READ = {*HEADERS, SUBSYSTEMS_HEADER, *(header for header, _, _ in LISTS.values())}  # all that is read of a source
LISTED = re.compile(r"\b(?:R|FN)\((\w+)\)")
NO_REASON = "UNSPEC"  # the first of QDISC, which is 0
ENUM = re.compile(r"enum skb_drop_reason \{(.*?)\};", re.DOTALL)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)
ENTRY = re.compile(r"^\s*(SKB_\w+)\s*(?:=\s*(\w+))?,", re.MULTILINE)
PREFIX = "SKB_DROP_REASON_"
NOT_SPECIFIED = "NOT_SPECIFIED"
CONSUMED = "SKB_CONSUMED"
MOST = (1 << 31) - 1  # of an enum


@lru_cache(maxsize=8)
def reasons(source: Path) -> dict[str, int]:
    """Return the drop reasons of a kernel's source: name, a core reason's without prefix -> number."""
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
    return numbers | _of_subsystems(source)


def _of_subsystems(source: Path) -> dict[str, int]:
    path = source / SUBSYSTEMS_HEADER
    found: dict[str, int] = {}
    for number, subsystem in enumerate(SUBSYSTEM.findall(COMMENT.sub("", path.read_text())) if path.exists() else ()):
        header, macro, prefix = LISTS.get(subsystem, ("", "", ""))
        if header and (source / header).exists():  # a kernel without the subsystem lacks its header
            text = COMMENT.sub("", (source / header).read_text()).replace("\\\n", " ")
            listed = re.search(rf"^#define {macro}\(.*?\)(.*)$", text, re.MULTILINE)
            names = [name for name in LISTED.findall(listed[1] if listed else "") if name != NO_REASON]
            found |= {f"{prefix}{name}": (number << SUBSYS_SHIFT) + at for at, name in enumerate(names, 1)}
    return found


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
