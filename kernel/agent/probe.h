/* SPDX-License-Identifier: GPL-2.0-only */
/* The probe of a function: looked up at each call, and so inline. The rest is in probe.c. */
#ifndef SKBLAB_PROBE_H
#define SKBLAB_PROBE_H

#include <linux/prefetch.h>

#include "agent.h"

extern struct agent_probe *agent_last_probe; /* that a followed packet met */
struct agent_probe *agent_probe_find(unsigned long address);
struct agent_probe *agent_probe_after_last(unsigned long address);

/*
 * The probe of a function that is entered, or NULL. Packets take the same way again and again, so it is most often the one
 * that followed the last probe the last time, which is prefetched already. Interrupts are off.
 */
static __always_inline struct agent_probe *agent_probe_at(unsigned long address)
{
	struct agent_probe *probe = agent_last_probe->next;

	if (unlikely(probe->address != address))
		return agent_probe_after_last(address);
	agent_last_probe = probe;
	prefetch(probe->next);
	return probe;
}

#endif
