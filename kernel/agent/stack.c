// SPDX-License-Identifier: GPL-2.0-only
/*
 * Who called a probed function. The kernel keeps no frame pointers, and UML has no unwinder that can be trusted
 * (arch/um/kernel/stacktrace.c tells every word that looks like code). So does this, but it tells too where each word
 * lies: with the kernel's call frame information the host then knows which of them are return addresses.
 */
#include <linux/mm.h>
#include <linux/thread_info.h>

#include "calls.h"

#define MOST_WORDS 256

/* Is there a call before it? E8 and four bytes; or FF /2 with its operand of none, one or four bytes. KASAN: or data. */
static __no_kasan_or_inline bool follows_call(unsigned long address)
{
	const unsigned long before = get_unaligned((const unsigned long *)(address - 8));
	const u8 *code = (const u8 *)&before + 8;

	return code[-5] == 0xe8 || (code[-2] == 0xff && (code[-1] & 0x38) == 0x10) ||
	       (code[-3] == 0xff && (code[-2] & 0x38) == 0x10) || (code[-6] == 0xff && (code[-5] & 0x38) == 0x10);
}

/* The words of this stack from the caller on, up to MOST_WORDS; valid while interrupts are off. Modules are not known. */
unsigned int agent_stack(u64 text_start, u64 text_end, const struct agent_regs *regs, const u64 **words)
{
	static u64 found[MOST_WORDS];
	const unsigned long start = (unsigned long)&regs->caller;
	const unsigned long end = (start | (THREAD_SIZE - 1)) + 1;
	unsigned int count = 0;

	for (unsigned long at = start; at < end && count < MOST_WORDS; at += sizeof(long)) {
		unsigned long word = agent_call_caller(at);
		bool in_kernel = word > text_start + 8 && word < text_end && follows_call(word);

		if (at == start || in_kernel || is_vmalloc_addr((const void *)word))
			found[count++] = AGENT_STACK_WORD(word, at - start);
	}
	*words = found;
	return count;
}
