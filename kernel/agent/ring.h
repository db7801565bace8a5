/* SPDX-License-Identifier: GPL-2.0-only */
/* The ring of steps: what is done at each one. The rest is in ring.c. */
#ifndef SKBLAB_RING_H
#define SKBLAB_RING_H

#include <asm/barrier.h>
#include <linux/prefetch.h>

#include "agent.h"

struct agent_steps { /* of the ring, what is ours without another look at where the host has come to */
	char *place; /* of the next record */
	u64 room_bytes;
};

extern struct agent_steps agent_steps;
bool agent_steps_make_room(u32 bytes);
void agent_steps_tell(u64 head);

/*
 * Begin a record of so many bytes, its head filled in; or NULL where the ring is full, which is counted. Interrupts are off
 * until agent_step_end().
 */
static __always_inline void *agent_step_begin(u16 kind, u16 number, u32 bytes)
{
	struct agent_record *record;

	bytes = ALIGN(bytes, 8);
	if (unlikely(agent_steps.room_bytes < bytes) && !agent_steps_make_room(bytes))
		return NULL;
	record = (struct agent_record *)agent_steps.place;
	*record = (struct agent_record){ .bytes = bytes, .kind = kind, .rule = number };
	return record;
}

static __always_inline void agent_step_end(const void *step)
{
	const struct agent_record *record = step;
	struct agent_shared *shared = agent_shared;
	const u64 head = shared->steps_head + record->bytes;

	agent_steps.place += record->bytes;
	agent_steps.room_bytes -= record->bytes;
	smp_store_release(&shared->steps_head, head);
	prefetchw((const char *)step + 512); /* the next one's place is not in this processor's cache */
	prefetchw((const char *)step + 576);
	if (unlikely(READ_ONCE(shared->host_waits)))
		agent_steps_tell(head);
}

#endif
