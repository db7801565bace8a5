// SPDX-License-Identifier: GPL-2.0-only
/* What few steps have: a device that was not named before, and the stack of a drop. */
#include <linux/hash.h>

#include "step.h"

/* Name the device of an index, from this step on. Each network namespace has its own device of that index. */
void agent_write_device(const struct net_device *device)
{
	struct agent_device *it = agent_step_begin(AGENT_DEVICE, 0, sizeof(*it));

	if (!it)
		return;
	agent_devices_named[device->ifindex % AGENT_NAMED] = device;
	it->device = device->ifindex;
	it->padding = 0;
	memcpy(it->name, device->name, sizeof(it->name));
	agent_step_end(it);
}

/*
 * Does the host have the stack of this call site already? A kernel without tracepoints frees every consumed packet by
 * kfree_skb_reason(NOT_SPECIFIED), too (include/linux/skbuff.h consume_skb()). One stack per call site is enough to tell.
 */
static bool is_known_site(unsigned long caller)
{
	static unsigned long known[256];
	unsigned long *site = &known[hash_long(caller, 8)];

	if (*site == (caller ^ agent_following.cookie))
		return true;
	*site = caller ^ agent_following.cookie; /* the cookie differs in the next trace, which needs the stack again */
	return false;
}

/* Return how many words the stack of a drop has, 0 where the packet is consumed or the host has the stack already. */
u32 agent_stack_of_drop(const struct agent_tracing *tracing, const struct agent_regs *regs, unsigned long caller, u32 reason,
			const u64 **words)
{
	if (reason == tracing->no_drop || (reason == tracing->no_reason && is_known_site(caller)))
		return 0;
	return agent_stack(agent_following.text_start, agent_following.text_end, regs, words);
}
