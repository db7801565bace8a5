"""Run by gdb in batch mode over a kernel: put numbers where the kernel's constants.py has gdb look names up.

An enumerator or a type is in no index: each time, gdb reads most of the debug info to find one, 2 s of every start. A
variable has its value at run time only, and stays. gdb and the standard library alone.
"""

import os
import re

import gdb

LOOKED_UP = re.compile(r'^( *LX_\w+ = )gdb\.parse_and_eval\("(.*)"\)$', re.MULTILINE)


def number(found: re.Match[str]) -> str:
    """Return a line with its number, or as it is."""
    try:
        value = gdb.parse_and_eval(found[2])
    except gdb.error:  # this kernel has no such thing, and a condition around the line says so
        return found[0]
    is_variable = getattr(value, "address", None) is not None
    return found[0] if is_variable else f"{found[1]}{int(value)}"


path = os.environ["SKBLAB_CONSTANTS"]
with open(path) as file:  # noqa: PTH123
    text = file.read()
with open(path, "w") as file:  # noqa: PTH123
    file.write(LOOKED_UP.sub(number, text))
