"""A clock that can stand still while the kernel is stopped.

The guest's clock is the host's, so that it jumps by the length of a stop under gdb, and the guest's timers end at once.
Now ``os_stopped_ns`` is taken off it; who stops the kernel adds the stop's length there (``LabSpec(clock="frozen")``).
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault

TIME = Path("arch/um/os-Linux/time.c")

REALTIME = "\treturn timespec_to_ns(&realtime_tp);\n"
MONOTONIC = "\tclock_gettime(CLOCK_MONOTONIC,&ts);\n\treturn timespec_to_ns(&ts);\n"

JUMPS = Fault(
    name="a clock that jumps",
    does='clock="frozen" has no effect: time passes in the guest while gdb has stopped its kernel',
    corrections=(
        Correction(
            (
                Change(
                    TIME,
                    "long long os_persistent_clock_emulation(void)\n",
                    "long long os_stopped_ns; /* written by the host */\n\n"
                    "long long os_persistent_clock_emulation(void)\n",
                ),
                *(
                    Change(TIME, read, read.removesuffix(";\n") + " - os_stopped_ns;\n")
                    for read in (REALTIME, MONOTONIC)
                ),
            )
        ),
    ),
)
