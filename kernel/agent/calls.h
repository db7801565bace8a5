/* SPDX-License-Identifier: GPL-2.0-only */
/* Which calls are under way: what is asked at each step and each return. The rest is in calls.c. */
#ifndef SKBLAB_CALLS_H
#define SKBLAB_CALLS_H

#include <linux/thread_info.h>

#include "agent.h"

#define AGENT_DEEPEST 64

struct agent_call { /* it is under way, and tells when it returns */
	unsigned long slot; /* where its return address lies */
	unsigned long caller; /* what that is */
	const struct agent_passage *passage;
	u64 at_ns;
	struct sk_buff *skb;
	u64 head; /* skb->head, at its begin */
	u32 number;
	u32 packet;
	u32 other; /* packet */
	bool shared;
};

struct agent_calls { /* on one stack */
	unsigned long base;
	unsigned int depth;
	struct agent_call calls[AGENT_DEEPEST]; /* from the outermost */
};

extern struct agent_calls *agent_calls_recent;
extern u32 agent_last_call;

struct agent_calls *agent_calls_find(unsigned long base);
void agent_call_unhooked(void);
unsigned long agent_call_caller_of(unsigned long slot);

/* Those on the stack where *slot lies, or NULL: on too many, or none is waited for any more. */
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

/* The innermost call that is under way where the stack has come to, or NULL; a jump instead of a call shares its place. */
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
 * Have a call told of when it returns; NULL where that cannot be, which is counted. *slot: its return address, where
 * agent_call_around() has looked. All but these three fields is the caller's to fill in.
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

/* A call has come to its end; what it was stays until the next one on its stack begins. */
static __always_inline const struct agent_call *agent_call_end(const unsigned long *slot)
{
	struct agent_calls *calls = agent_calls_on(slot);
	const struct agent_call *call = agent_call_around(calls, slot);

	BUG_ON(!call || call->slot != (unsigned long)slot); /* there is no way back */
	calls->depth--;
	return call;
}

/* What a return address on this stack was before it was ours; whatever else lies there is left as it is. */
static __always_inline unsigned long agent_call_caller(unsigned long slot)
{
	const unsigned long word = READ_ONCE_NOCHECK(*(const unsigned long *)slot);

	return word == (unsigned long)agent_return ? agent_call_caller_of(slot) : word;
}

#endif
