// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which calls are under way, stack by stack. A call whose return is of interest returns to agent_return (trampoline.S) and
 * from there to its caller: the return address itself is kept here, with what is to be known when the call ends. So it is
 * known, too, in which call another one happens.
 *
 * A call can be left without a return, when its task dies; the next one that comes so high up on this stack, or finds
 * something else where the return address was, clears it away. Interrupts are off in most of this.
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

/* The calls on another stack than on the recent one. */
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

/* Every call returns to its caller again, and is not told of. Not for interrupts, which may be on here. */
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
