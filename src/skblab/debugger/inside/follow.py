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
    "set auto-solib-add off",
    "set confirm off",
)


def set_up(*more: str) -> None:
    """Tell gdb what it has to know of the kernel's process, and more."""
    for command in (*SET_UP, *more):
        gdb.execute(command, to_string=True)
