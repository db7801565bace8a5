/* SPDX-License-Identifier: GPL-2.0-only */
/* The calls that have not returned yet: what every step and return needs. The rest is in calls.c. */
#ifndef SKBLAB_CALLS_H
#define SKBLAB_CALLS_H

#include <linux/thread_info.h>

#include "agent.h"

#define AGENT_DEEPEST 64

struct agent_call { /* that has not returned yet */
	unsigned long slot; /* address of its return address */
	unsigned long caller; /* the original return address */
	const struct agent_probe *probe;
	u64 at_ns;
	struct sk_buff *skb;
	u64 head; /* skb->head at its entry */
	u32 number;
	u32 packet; /* number; of a function that takes none, the packet of the call around */
	u32 other; /* number of the packet that this one may join */
	bool shared; /* skb had clones at its entry */
};

struct agent_calls { /* on one stack */
	unsigned long base;
	unsigned int depth;
	struct agent_call calls[AGENT_DEEPEST]; /* outermost first */
};

extern struct agent_calls *agent_calls_recent;
extern u32 agent_last_call;

struct agent_calls *agent_calls_find(unsigned long base);
void agent_call_unhooked(void);
unsigned long agent_call_caller_of(unsigned long slot);

/* The calls of the stack where slot lies; NULL where there are too many stacks, or after the trace. */
static __always_inline struct agent_calls *agent_calls_on(const unsigned long *slot)
{
	const unsigned long base = (unsigned long)slot & ~(THREAD_SIZE - 1);

	return likely(agent_calls_recent->base == base) ? agent_calls_recent : agent_calls_find(base);
}

static __always_inline bool agent_call_lasts(const struct agent_call *call, unsigned long at)
{
	return call->slot >= at &&
	       READ_ONCE_NOCHECK(*(const unsigned long *)call->slot) == (unsigned long)agent_return;
}

/* The innermost call around slot, or NULL. A tail call has the slot of the call that it is in. */
static __always_inline struct agent_call *agent_call_around(struct agent_calls *calls, const unsigned long *slot)
{
	if (unlikely(!calls))
		return NULL;
	while (calls->depth && !agent_call_lasts(&calls->calls[calls->depth - 1], (unsigned long)slot))
		calls->depth--;
	return calls->depth ? &calls->calls[calls->depth - 1] : NULL;
}

static __always_inline u32 agent_call_number(void)
{
	return ++agent_last_call ?: ++agent_last_call;
}

/*
 * Replace the return address at slot, after agent_call_around(); NULL, which is counted, where there is no room. The caller
 * fills in the other fields.
 */
static __always_inline struct agent_call *agent_call_begin(struct agent_calls *calls, unsigned long *slot)
{
	struct agent_call *call;

	if (unlikely(!calls || calls->depth == AGENT_DEEPEST)) {
		agent_call_unhooked();
		return NULL;
	}
	call = &calls->calls[calls->depth++];
	call->slot = (unsigned long)slot;
	call->caller = *slot;
	call->number = agent_call_number();
	*slot = (unsigned long)agent_return;
	return call;
}

/* A call has returned. Its fields stay until the next call on its stack. */
static __always_inline const struct agent_call *agent_call_end(const unsigned long *slot)
{
	struct agent_calls *calls = agent_calls_on(slot);
	const struct agent_call *call = agent_call_around(calls, slot);

	BUG_ON(!call || call->slot != (unsigned long)slot); /* the return address is lost */
	calls->depth--;
	return call;
}

/* A word of this stack; where it is agent_return, the original return address. */
static __always_inline unsigned long agent_call_caller(unsigned long slot)
{
	const unsigned long word = READ_ONCE_NOCHECK(*(const unsigned long *)slot);

	return word == (unsigned long)agent_return ? agent_call_caller_of(slot) : word;
}

#endif
