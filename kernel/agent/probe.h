/* SPDX-License-Identifier: GPL-2.0-only */
/* Which function has which rules: what is asked at each call. The rest is in probe.c. */
#ifndef SKBLAB_PROBE_H
#define SKBLAB_PROBE_H

#include <linux/prefetch.h>

#include "agent.h"

extern struct agent_probe *agent_last_probe; /* that was passed */
struct agent_probe *agent_probe_find(unsigned long address);
struct agent_probe *agent_probe_after_last(unsigned long address);

/*
 * The probe of a function that is entered, or NULL. Packets take the same way again and again: the one that came after the
 * last one the last time is it most often, and was asked for from memory then. Interrupts are off.
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
