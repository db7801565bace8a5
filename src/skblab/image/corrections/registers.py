"""Room for registers.

UML keeps a guest process's floating-point state in buffers of ``HOST_FP_SIZE``: 2,696 bytes, the size of AVX-512, at
least up to 6.12. PTRACE_SETREGSET refuses a state that is cut short (arch/x86/kernel/fpu/regset.c xstateregs_set()), so
that on a processor with AMX, whose state is 11,008 bytes, the guest's first process dies of its first page fault. A
buffer larger than the processor's state does no harm. The buffers lie on the kernel's stacks, which grow with them
(KERNEL_STACK_ORDER in kconfig/base.config). 7.x asks the processor for the size (os-Linux/start_up.c).
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault, Sign

ROOM = Fault(
    name="room for registers",
    does="on a processor with AMX the guest's first process dies",
    corrections=(
        Correction((
            Change(
                Path("arch/x86/um/user-offsets.c"),
                "DEFINE_LONGS(HOST_FP_SIZE, 2696);",
                "DEFINE_LONGS(HOST_FP_SIZE, 12288);",
            ),
        )),
    ),
    absent=(
        Sign(
            "the buffers have the size of the processor's state (host_fp_size)",
            Path("arch/um/os-Linux/start_up.c"),
            has=("\t\thost_fp_size = fp_size;\n",),
            since=(6, 13),
        ),
    ),
)  # fmt: skip
