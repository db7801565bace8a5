"""gdb's settings for a User Mode Linux kernel."""

import os
import signal

import gdb

SET_UP = (
    # UML's signals are its interrupts. SIGIO must be passed: descriptors are edge-triggered, and a packet whose signal
    # is swallowed waits for the next one (arch/um/os-Linux/irq.c).
    "handle SIGSEGV SIGUSR1 SIGALRM SIGIO SIGWINCH SIGCHLD SIG34 pass nostop noprint",
    "handle SIGCONT stop print nopass",
    # Guest processes and helpers are clones of the kernel's process: do not follow them.
    "set follow-fork-mode parent",
    "set detach-on-fork on",
    "set print thread-events off",
    "set print inferior-events off",
    "set auto-load libthread-db off",
    "set auto-solib-add off",
    "set exec-file-mismatch off",  # at boot the process has not executed the kernel's file yet
    "set confirm off",
)


# Until it executes the kernel, the process is another program without symbols here, and has stopped itself.
EXECUTE = (
    "handle SIGSTOP SIGCONT nostop noprint nopass",
    "tcatch exec",
    "continue",
    "handle SIGSTOP stop print pass",
    "handle SIGCONT stop print nopass",
)


def execute_kernel() -> None:
    """Let the attached process execute the kernel, and stop it at the first instruction.

    SIGCONT ends the stop for the host, too: each new thread of the kernel would join it (kernel/signal.c
    task_join_group_stop()).
    """
    os.kill(gdb.selected_inferior().pid, signal.SIGCONT)
    for command in EXECUTE:
        gdb.execute(command, to_string=True)


def set_up(*more: str) -> None:
    """Apply the settings, and *more* commands."""
    for command in (*SET_UP, *more):
        gdb.execute(command, to_string=True)
