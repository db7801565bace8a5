/* SPDX-License-Identifier: GPL-2.0-only */
/* The guest's monotonic clock for events: what is done at each step. The rest is in clock.c. */
#ifndef SKBLAB_CLOCK_H
#define SKBLAB_CLOCK_H

#include <linux/math64.h>
#include <linux/types.h>

struct agent_clock {
	u64 ns, ticks; /* when it was last asked */
	u64 fresh_ticks; /* for so many its word is carried on; 0 before the counter's pace is known */
	u32 ns_per_tick; /* times 2^32 */
};

extern struct agent_clock agent_clock;
u64 agent_clock_ask(void);
void agent_clock_set(void);

/* Interrupts are off. */
static __always_inline u64 agent_now_ns(void)
{
	const u64 elapsed = __builtin_ia32_rdtsc() - agent_clock.ticks;

	if (likely(elapsed < agent_clock.fresh_ticks))
		return agent_clock.ns + mul_u64_u32_shr(elapsed, agent_clock.ns_per_tick, 32);
	return agent_clock_ask();
}

#endif
