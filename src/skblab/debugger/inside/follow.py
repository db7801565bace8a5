"""What gdb has to be told of a User Mode Linux kernel before it attaches to one."""

import gdb

SET_UP = (
    # UML's signals are its interrupts. Never "nopass" SIGIO: its descriptors are edge-triggered, so a swallowed signal
    # strands a packet until the next one (arch/um/os-Linux/irq.c).
    "handle SIGSEGV SIGUSR1 SIGALRM SIGIO SIGWINCH SIGCHLD SIG34 pass nostop noprint",
    "handle SIGCONT stop print nopass",
    # Guest processes and helpers are clones of the kernel's process: they are not to be followed.
    "set follow-fork-mode parent",
    "set detach-on-fork on",
    "set print thread-events off",
    "set print inferior-events off",
    "set auto-load libthread-db off",
    "set auto-solib-add off",
    "set exec-file-mismatch off",  # process 1 of the lab may not be what has the kernel's file, at boot
    "set confirm off",
)


# What executes the kernel is another program until then, whose symbols nobody has, and it has stopped itself.
EXECUTE = (
    "handle SIGSTOP nostop noprint nopass",
    "tcatch exec",
    "continue",
    "handle SIGSTOP stop print pass",
)


def execute_kernel() -> None:
    """Let the process that gdb has attached to become the kernel, and stop it at the first instruction."""
    for command in EXECUTE:
        gdb.execute(command, to_string=True)


def set_up(*more: str) -> None:
    """Tell gdb what it has to know of the kernel's process, and more."""
    for command in (*SET_UP, *more):
        gdb.execute(command, to_string=True)
