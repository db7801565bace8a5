// SPDX-License-Identifier: GPL-2.0-only
/*
 * The calls that have not returned yet, for each stack. The return address of such a call is replaced by agent_return
 * (trampoline.S), which jumps to the original one, kept here. The innermost call of a stack is the one around a new call.
 *
 * A task that dies leaves calls without a return. They are dropped by the next call that lies higher on the same stack, or
 * that finds another word in the place of the return address. Interrupts are off, except where it says otherwise.
 */
#include <linux/mm.h>
#include <linux/slab.h>

#include "calls.h"

#define MOST_STACKS 128

static struct agent_calls nowhere; /* no stack begins at 0 */
struct agent_calls *agent_calls_recent = &nowhere;
u32 agent_last_call;
static struct agent_calls *stacks;
static unsigned int used;

/* The calls of another stack than the recent one. */
struct agent_calls *agent_calls_find(unsigned long base)
{
	struct agent_calls *empty = NULL;

	if (!stacks)
		return NULL;
	for (struct agent_calls *calls = stacks; calls < stacks + used; calls++) {
		if (calls->base == base)
			return agent_calls_recent = calls;
		if (!calls->depth)
			empty = calls;
	}
	if (used < MOST_STACKS)
		empty = &stacks[used++];
	if (!empty)
		return NULL;
	empty->base = base;
	empty->depth = 0;
	return agent_calls_recent = empty;
}

void agent_call_unhooked(void)
{
	agent_shared->unhooked += stacks != NULL;
}

unsigned long agent_call_caller_of(unsigned long slot)
{
	struct agent_calls *calls = agent_calls_on((const unsigned long *)slot);

	for (unsigned int i = calls ? calls->depth : 0; i--;)
		if (calls->calls[i].slot == slot)
			return calls->calls[i].caller;
	return (unsigned long)agent_return;
}

int agent_calls_begin(void)
{
	if (!stacks)
		stacks = kvcalloc(MOST_STACKS, sizeof(*stacks), GFP_KERNEL);
	return stacks ? 0 : -ENOMEM;
}

/* Restore every return address. Process context, interrupts on. */
void agent_calls_end(void)
{
	struct agent_calls *old = stacks;
	unsigned long flags;

	local_irq_save(flags);
	for (struct agent_calls *calls = stacks; calls && calls < stacks + used; calls++)
		while (calls->depth--) {
			struct agent_call *call = &calls->calls[calls->depth];

			if (agent_call_lasts(call, 0))
				*(unsigned long *)call->slot = call->caller;
		}
	stacks = NULL;
	agent_calls_recent = &nowhere;
	used = 0;
	local_irq_restore(flags);
	kvfree(old);
}
