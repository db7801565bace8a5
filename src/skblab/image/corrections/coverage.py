"""The current task.

UML's main() calls kernel functions before a current task exists, and KCOV makes them read it (kernel/kcov.c
check_kcov_mode()): a kernel with KCOV died before its first message. Without a task nobody can have asked for coverage.
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault

MODE = "check_kcov_mode(enum kcov_mode needed_mode, struct task_struct *t)\n{\n\tunsigned int mode;\n"
MODE_OF_A_TASK = f"{MODE}\n\tif (system_state < SYSTEM_SCHEDULING)\n\t\treturn false;\n"

CURRENT_TASK = Fault(
    name="the current task",
    does="a kernel with KCOV dies before its first message",
    corrections=(Correction((Change(Path("kernel/kcov.c"), MODE, MODE_OF_A_TASK),)),),
    variant="kcov",
)
