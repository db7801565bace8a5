"""A fork that is killed.

dup_mmap() leaves XA_ZERO_ENTRY in the child's maple tree where a fatal signal stopped it, and behind it the parent's
own mappings. Every walk of the tree stops there (mm/mmap.c exit_mmap()), but UML's flush_tlb_mm() took the entry for a
mapping: the kernel panicked. Now it stops there, too. 6.1 leaves no such entry; 7.3 destroys the whole tree instead.
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault, Sign

MARK_ALL = """\
	for_each_vma(vmi, vma)
		um_tlb_mark_sync(mm, vma->vm_start, vma->vm_end);
"""
MARK_ALL_THAT_ARE = """\
	for_each_vma(vmi, vma) {
		if (xa_is_zero(vma))
			break;
		um_tlb_mark_sync(mm, vma->vm_start, vma->vm_end);
	}
"""
NO_ENTRY = "dup_mmap() leaves no XA_ZERO_ENTRY behind"

KILLED_FORK = Fault(
    name="a fork that is killed",
    does="the kernel panics when a process is killed while it forks",
    corrections=(Correction((Change(Path("arch/um/kernel/tlb.c"), MARK_ALL, MARK_ALL_THAT_ARE),)),),
    absent=(
        Sign(
            NO_ENTRY,
            Path("kernel/fork.c"),
            has=("__latent_entropy int dup_mmap(struct mm_struct *mm,",),
            lacks=("XA_ZERO_ENTRY",),
        ),
        Sign(
            NO_ENTRY,
            Path("mm/mmap.c"),
            has=("__latent_entropy int dup_mmap(struct mm_struct *mm,",),
            lacks=("XA_ZERO_ENTRY",),
            since=(6, 13),
        ),
    ),
)
