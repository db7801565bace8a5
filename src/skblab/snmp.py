"""The kernel's counters, as /proc/net/snmp, netstat and snmp6 have them."""

from collections.abc import Iterator


def counters(text: str) -> Iterator[tuple[str, str, int]]:
    """Yield group, name and value of each counter in these files' text; those of snmp6 have no group.

    net/ipv4/proc.c writes a line of names, then one of values, for each group; net/ipv6/proc.c a line for each counter.
    """
    names: dict[str, list[str]] = {}  # of a group whose values come next
    for line in text.splitlines():
        group, found, rest = line.partition(": ")
        words = rest.split() if found else line.split()
        if not found:
            if len(words) == 2 and ":" not in words[0] and words[1].isdecimal():
                yield "", words[0], int(words[1])
        elif group in names:
            for name, value in zip(names.pop(group), words, strict=True):
                yield group, name, int(value)
        else:
            names[group] = words
