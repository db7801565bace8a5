// SPDX-License-Identifier: GPL-2.0-only
/* The rings of records in the memory that is shared with the host: events and steps that go there, commands that come. */
#include <linux/jiffies.h>
#include <linux/minmax.h>
#include <linux/timer.h>

#include "ring.h"

#define AHEAD_BYTES 256
#define ANSWERS_BYTES (2 << 20) /* of the ring of events, kept free for them: more than all commands have answers */

#define NEAR(size) ((size) / 4) /* steps stay there while the host keeps up, in the processor's cache if they are few */
#define LOOK_BYTES 4096 /* of steps, between two looks at where the host has come to */

struct agent_steps agent_steps;
u64 agent_ends_owed;
static u64 events_tail; /* the host's, when last looked at: its cache line is not asked for with every event */

static void tell_now(struct timer_list *timer);
static DEFINE_TIMER(soon_timer, tell_now);

static void tell_soon(void)
{
	if (!timer_pending(&soon_timer))
		mod_timer(&soon_timer, jiffies + msecs_to_jiffies(READ_ONCE(agent_shared->steps_soon_ms)));
}

static struct agent_record *record_at(u64 ring_offset, u64 ring_bytes, u64 count)
{
	return (struct agent_record *)((char *)agent_shared + ring_offset + (count & (ring_bytes - 1)));
}

/* Is there room? What is kept free is for answers, and for the end of each packet that is held. */
static bool fits(u64 bytes, u64 kept_free)
{
	u64 head = agent_shared->events_head, size = agent_shared->events_bytes;

	if (head - events_tail + bytes + kept_free <= size)
		return true;
	events_tail = smp_load_acquire(&agent_shared->events_tail);
	return head - events_tail + bytes + kept_free <= size;
}

/*
 * Begin an event of so many bytes: a place for it in the ring, its head filled in, or NULL where the ring is full, which is
 * counted. A hit is the one kind that can be done without. Interrupts are off until agent_event_end().
 */
void *agent_event_begin(u16 kind, u16 rule, u32 bytes)
{
	u64 offset = agent_shared->events_offset, size = agent_shared->events_bytes, head = agent_shared->events_head;
	u64 left = size - (head & (size - 1));
	u64 kept_free = kind == AGENT_HIT ? ANSWERS_BYTES + (agent_ends_owed + 1) * sizeof(struct agent_end) : 0;
	struct agent_record *record;

	bytes = ALIGN(bytes, 8);
	if (!fits(left < bytes ? left + bytes : bytes, kept_free)) {
		agent_shared->lost++;
		return NULL;
	}
	if (left < bytes) {
		*record_at(offset, size, head) = (struct agent_record){ .bytes = left };
		head += left;
		smp_store_release(&agent_shared->events_head, head);
	}
	record = record_at(offset, size, head);
	*record = (struct agent_record){ .bytes = bytes, .kind = kind, .rule = rule };
	return record;
}

static void publish(const void *event)
{
	const struct agent_record *record = event;

	smp_store_release(&agent_shared->events_head, agent_shared->events_head + record->bytes);
	for (u32 line = 0; line < AHEAD_BYTES; line += 64) /* the next one's place is not in this processor's cache */
		prefetchw((const char *)event + 512 + line);
}

void agent_event_end(const void *event)
{
	publish(event);
	agent_ring_soon();
}

/* The host hears of it with the next event, or soon. */
void agent_event_end_quietly(const void *event)
{
	publish(event);
	tell_soon();
}

static void tell_now(struct timer_list *timer)
{
	agent_ring();
}

/* Have room for so many bytes of steps in one piece, and for more of them if there is; false where the ring is full. */
bool agent_steps_make_room(u32 bytes)
{
	const u64 size = agent_shared->steps_bytes, tail = smp_load_acquire(&agent_shared->steps_tail);
	u64 head = agent_shared->steps_head, left = size - (head & (size - 1));
	const bool goes_back = left < bytes || (size - left >= NEAR(size) && tail == head);
	struct agent_record *record = record_at(agent_shared->steps_offset, size, head);

	agent_steps.room_bytes = 0;
	if (head - tail + bytes + (goes_back ? left : 0) > size) {
		agent_shared->steps_lost++;
		return false;
	}
	if (goes_back) {
		*record = (struct agent_record){ .bytes = left };
		head += left;
		smp_store_release(&agent_shared->steps_head, head);
		record = record_at(agent_shared->steps_offset, size, head);
		left = size;
	}
	agent_steps.place = (char *)record;
	agent_steps.room_bytes = min3(left, size - (head - tail), max_t(u64, bytes, LOOK_BYTES));
	return true;
}

/* Wake the host when there are as many steps as it waits for, or soon: a wake-up costs more than a step. */
void agent_steps_tell(u64 head)
{
	if (head - READ_ONCE(agent_shared->steps_tail) >= READ_ONCE(agent_shared->steps_wanted))
		agent_ring_soon();
	else
		tell_soon();
}

void agent_steps_quiet(void)
{
	timer_delete_sync(&soon_timer);
}

/* The next command, or NULL; it stays in the ring until agent_command_done(). */
struct agent_record *agent_command(void)
{
	struct agent_record *record;

	while (agent_shared->commands_tail != smp_load_acquire(&agent_shared->commands_head)) {
		record = record_at(agent_shared->commands_offset, agent_shared->commands_bytes,
				   agent_shared->commands_tail);
		if (record->kind)
			return record;
		agent_command_done(record);
	}
	return NULL;
}

/* The controller that sent them is gone. */
void agent_commands_forget(void)
{
	smp_store_release(&agent_shared->commands_tail, smp_load_acquire(&agent_shared->commands_head));
}

void agent_command_done(const struct agent_record *record)
{
	smp_store_release(&agent_shared->commands_tail, agent_shared->commands_tail + record->bytes);
}
