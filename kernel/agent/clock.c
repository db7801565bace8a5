// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's monotonic clock for events, at half its price and finer. The clock is the host's clock_gettime(2), 20 ns a
 * call, in steps of 256 ns (arch/um/kernel/time.c timer_read()). The time stamp counter extends it for about a millisecond;
 * then the clock is read again: after a pause, after a stop under gdb, on a processor whose counter is behind. While the two
 * agree to within a step of the clock, the counter's finer value is used. In virtual time the clock alone is read.
 */
#include <linux/delay.h>
#include <linux/ktime.h>
#include <shared/timetravel.h>

#include "agent.h"
#include "clock.h"

#define FRESH_TICKS (1ull << 21) /* at 2 to 3 GHz, 0.7 to 1 ms */
#define CALIBRATION_TICKS (1ull << 25)
#define CALIBRATION_OLD_TICKS (1ull << 31) /* the shift by 32 below has room for so many ns */
#define CLOCK_STEP_NS 256
#define UNDISTURBED_TICKS 2000 /* both clocks were read with nothing between */

struct agent_clock agent_clock;
static u64 first_ns, first_ticks; /* the begin of what is measured now */

static void calibrate(u64 ns, u64 ticks)
{
	u64 elapsed = ticks - first_ticks;

	if (elapsed >= CALIBRATION_TICKS && elapsed < CALIBRATION_OLD_TICKS) {
		agent_clock.ns_per_tick = div64_u64((ns - first_ns) << 32, elapsed);
		agent_clock.fresh_ticks = FRESH_TICKS;
	}
	if (elapsed >= CALIBRATION_OLD_TICKS) {
		first_ns = ns;
		first_ticks = ticks;
	}
}

/* Measure the counter for the events from now on. Process context: this sleeps. */
void agent_clock_set(void)
{
	unsigned long flags;

	if (time_travel_mode != TT_MODE_OFF)
		return;
	for (unsigned int tries = 0; tries < 4 && !agent_clock.ns_per_tick; tries++) {
		local_irq_save(flags);
		agent_clock_ask();
		local_irq_restore(flags);
		msleep(20);
	}
}

/* The time now, by the clock itself. Interrupts are off. */
u64 agent_clock_ask(void)
{
	u64 before = __builtin_ia32_rdtsc(), elapsed = before - agent_clock.ticks, now = ktime_get_mono_fast_ns();

	if (__builtin_ia32_rdtsc() - before >= UNDISTURBED_TICKS || time_travel_mode != TT_MODE_OFF)
		return now;
	calibrate(now, before);
	if (agent_clock.ns_per_tick && elapsed < CALIBRATION_OLD_TICKS) {
		u64 carried = agent_clock.ns + mul_u64_u32_shr(elapsed, agent_clock.ns_per_tick, 32);

		if (carried >= now && carried - now < 2 * CLOCK_STEP_NS)
			now = carried;
	}
	agent_clock.ns = now;
	agent_clock.ticks = before;
	return now;
}
