"""Correct what stands in the way in User Mode Linux, without touching the source, which may be a developer's own.

A corrected copy of the file lies in the build directory, where make looks before it looks in the source (VPATH). A
source that does not have the fault any more has nothing to be replaced, and is built as it is.

**Room for registers.** UML keeps a guest process's floating-point state in buffers of ``HOST_FP_SIZE``: 2,696 bytes,
the size of AVX-512, at least up to 6.12. PTRACE_SETREGSET refuses a state that is cut short
(arch/x86/kernel/fpu/regset.c xstateregs_set()), so that on a processor with AMX, whose state is 11,008 bytes, the
guest's first process dies of its first page fault. A buffer that is larger than the processor's state does no harm:
ptrace takes what is there. The buffers lie on the kernel's stacks, which grow with them (KERNEL_STACK_ORDER in
kconfig/base.config).

**Locks of the vector device.** vector_reset_stats() takes a lock that vector_poll() takes in a softirq, and lets
softirqs run. On one processor nothing comes of it, but lockdep says so, and then watches nothing else any more.

**The current task.** UML's main() calls functions of the kernel's before there is a current task, and KCOV has them
look at it (kernel/kcov.c check_kcov_mode()): a kernel with KCOV dies before its first word. Nobody can have asked for
coverage before there are tasks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VECTOR = Path("arch/um/drivers/vector_kern.c")


@dataclass(frozen=True, slots=True)
class Correction:
    """What is to be replaced in a file, wherever it is, and by what."""

    file: Path
    old: str
    new: str


CORRECTIONS = (
    Correction(
        Path("arch/x86/um/user-offsets.c"), "DEFINE_LONGS(HOST_FP_SIZE, 2696);", "DEFINE_LONGS(HOST_FP_SIZE, 12288);"
    ),
    *(
        Correction(VECTOR, f"{lock}(&vp->{queue}->head_lock);{next_}", f"{lock}_bh(&vp->{queue}->head_lock);{next_}")
        for lock, queue, next_ in (
            ("spin_lock", "rx_queue", "\n\tvp->estats.rx_queue_max"),
            ("spin_unlock", "rx_queue", "\n\n\t/* TX stats"),
            ("spin_lock", "tx_queue", "\n\tvp->estats.tx_timeout_count"),
            ("spin_unlock", "tx_queue", "\n}\n\nstatic int get_mtu"),
        )
    ),
)  # fmt: skip


KCOV_MODE = "check_kcov_mode(enum kcov_mode needed_mode, struct task_struct *t)\n{\n\tunsigned int mode;\n"
# With KCOV alone, for the key of every image is made of its corrections.
KCOV_CORRECTIONS = (
    Correction(
        Path("kernel/kcov.c"), KCOV_MODE, f"{KCOV_MODE}\n\tif (system_state < SYSTEM_SCHEDULING)\n\t\treturn false;\n"
    ),
)


def correct(tree: Path, obj: Path, corrections: Sequence[Correction]) -> None:
    """Put corrected copies into the build directory *obj* where the source in *tree* needs them."""
    for file in {correction.file for correction in corrections}:
        source = tree / file
        text = corrected = source.read_text() if source.is_file() else ""
        for correction in corrections:
            if correction.file == file:
                corrected = corrected.replace(correction.old, correction.new)
        copy = obj / file
        if corrected != text and not (copy.is_file() and copy.read_text() == corrected):  # make goes by its time
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(corrected)
