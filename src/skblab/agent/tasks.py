"""The guest's tasks in one line: who runs, and who waits for what."""

from collections.abc import Sequence

from skblab.agent.abi import Task

MOST = 6  # in one line; the newest: a program that waits for another is older
# Of the system calls in which a program waits (arch/x86/entry/syscalls/syscall_64.tbl).
CALLS = {
    0: "read", 1: "write", 7: "poll", 20: "writev", 23: "select", 34: "pause", 35: "nanosleep", 42: "connect",
    43: "accept", 44: "sendto", 45: "recvfrom", 46: "sendmsg", 47: "recvmsg", 61: "wait4", 128: "rt_sigtimedwait",
    130: "rt_sigsuspend", 202: "futex", 230: "clock_nanosleep", 232: "epoll_wait", 247: "waitid", 270: "pselect6",
    271: "ppoll", 281: "epoll_pwait", 288: "accept4", 441: "epoll_pwait2",
}  # fmt: skip


def described(tasks: Sequence[Task]) -> str:
    """Return what tasks do: ``sleep (pid 31) waits in clock_nanosleep(2)``; "" if there is no such task.

    The one that runs comes first. Those of init, which start programs and wait for them, are left out.
    """
    shown = sorted((task for task in tasks if task.name != "init"), key=lambda task: (not task.runs, -task.pid))
    more = f", and {len(shown) - MOST} more" if len(shown) > MOST else ""
    return ", ".join(map(_described, shown[:MOST])) + more


def _described(task: Task) -> str:
    call = f"{CALLS[task.call]}(2)" if task.call in CALLS else f"system call {task.call}"
    if task.is_kernels:
        does = "runs in the kernel"
    elif task.runs:
        does = "computes" if task.call < 0 else f"runs in {call}"
    else:
        does = "does not run" if task.call < 0 else f"waits in {call}"
    return f"{task.name} (pid {task.pid}) {does}"
