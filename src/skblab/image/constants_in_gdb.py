"""Run by gdb in batch mode on a kernel: replace gdb's symbol lookups in the kernel's constants.py by numbers.

gdb's index has no enumerators and types: each lookup reads most of the debug info, 2 s of every start. A variable has a
value only at run time, and stays. Imports gdb and the standard library only.
"""

import os
import re

import gdb

LOOKED_UP = re.compile(r'^( *LX_\w+ = )gdb\.parse_and_eval\("(.*)"\)$', re.MULTILINE)


def number(found: re.Match[str]) -> str:
    """Return a line with its number, or unchanged."""
    try:
        value = gdb.parse_and_eval(found[2])
    except gdb.error:  # this kernel has no such name; a condition around the line skips it
        return found[0]
    is_variable = getattr(value, "address", None) is not None
    return found[0] if is_variable else f"{found[1]}{int(value)}"


path = os.environ["SKBLAB_CONSTANTS"]
with open(path) as file:  # noqa: PTH123
    text = file.read()
with open(path, "w") as file:  # noqa: PTH123
    file.write(LOOKED_UP.sub(number, text))
