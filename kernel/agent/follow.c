// SPDX-License-Identifier: GPL-2.0-only
/*
 * The packets that are followed. skb->head identifies a packet: clones share it, and so are the same packet. The filter sees
 * a packet once. From then on it has a number, whatever becomes of its headers, until its bytes are freed. return.c knows
 * the functions that give a packet other bytes. Interrupts are off.
 */
#include <linux/hashtable.h>
#include <linux/mm.h>
#include <linux/slab.h>

#include "calls.h"
#include "clock.h"
#include "follow.h"

#define MOST 8192

struct agent_follow agent_following;
u32 agent_following_bytes;
const struct net_device *agent_devices_named[AGENT_NAMED];
static struct agent_filter *filter;
static DEFINE_HASHTABLE(heads, 12);
struct agent_followed *agent_packets;
static HLIST_HEAD(spare); /* of those, the forgotten ones; the first of them is still in the cache */
static struct agent_followed nobody; /* no skb->head is 0 */
struct agent_followed *agent_recent_packet = &nobody;
static unsigned int next_place; /* the next unused one; once all are used, the next to be forgotten for another */
static u32 last_number;

static struct agent_followed *followed_at(u64 head)
{
	struct agent_followed *packet;

	hash_for_each_possible(heads, packet, node, head)
		if (packet->head == head)
			return packet;
	return NULL;
}

static void forget(struct agent_followed *packet)
{
	hash_del(&packet->node);
	packet->head = 0;
	hlist_add_head(&packet->node, &spare);
}

static struct agent_followed *take_place(void)
{
	struct agent_followed *packet;

	if (hlist_empty(&spare)) {
		packet = &agent_packets[next_place++ % MOST];
		if (!packet->head)
			return packet;
		forget(packet);
		agent_shared->forgotten++;
	}
	packet = hlist_entry(spare.first, struct agent_followed, node);
	hlist_del(&packet->node);
	return packet;
}

struct agent_followed *agent_followed(const struct sk_buff *skb)
{
	return followed_at((u64)skb->head);
}

static struct agent_followed *follow(const struct sk_buff *skb, u32 number)
{
	struct agent_followed *packet = followed_at((u64)skb->head);

	if (!packet) {
		packet = take_place();
		packet->head = (u64)skb->head;
		hash_add(heads, &packet->node, packet->head);
	}
	packet->number = number;
	packet->last_call = 0;
	packet->is_new = false;
	packet->captured_bytes = 0;
	return packet;
}

struct agent_followed *agent_follow_new(const struct sk_buff *skb)
{
	return follow(skb, ++last_number);
}

/* A packet has other bytes now. A clone may still have the old ones. */
void agent_follow_moved(const struct sk_buff *skb, u32 number, u64 old_head, bool shared)
{
	struct agent_followed *old = followed_at(old_head);
	const u32 last_call = old ? old->last_call : 0;

	if (old && !shared)
		forget(old);
	follow(skb, number)->last_call = last_call;
}

/* agent_meet() of another packet than that of the last step. */
struct agent_followed *agent_meet_another(struct sk_buff *skb)
{
	struct agent_followed *packet = followed_at((u64)skb->head);

	if (packet)
		packet->is_new = false;
	else if (!filter || agent_takes(filter, skb))
		packet = agent_follow_new(skb);
	if (packet)
		agent_recent_packet = packet;
	return packet;
}

void agent_forget(u64 head)
{
	struct agent_followed *packet = followed_at(head);

	if (packet)
		forget(packet);
}

/* Begin to follow, or change what is followed. Process context. */
int agent_follow(const struct agent_follow *follow)
{
	struct agent_filter *new, *old;
	unsigned long flags;
	int error;

	if (follow->fields > AGENT_FIELDS)
		return -EINVAL;
	for (u32 i = 0; i < follow->fields; i++)
		if (!follow->field[i].hops || follow->field[i].hops > AGENT_FIELD_HOPS || follow->field[i].bytes > 64)
			return -EINVAL;
	if (!agent_packets)
		agent_packets = kvcalloc(MOST, sizeof(*agent_packets), GFP_KERNEL);
	if (!agent_packets || agent_calls_begin())
		return -ENOMEM;
	error = agent_filter_create(&new, follow + 1, follow->filter_length, follow->conditions,
				    (const void *)follow + follow->record.bytes);
	if (error)
		return error;
	agent_clock_set();
	agent_steps_prepare();
	local_irq_save(flags);
	agent_following = *follow;
	agent_following_bytes = 0;
	for (u32 i = 0; i < follow->fields; i++)
		agent_following_bytes += follow->field[i].bytes;
	memset(agent_devices_named, 0, sizeof(agent_devices_named));
	old = filter;
	filter = new;
	local_irq_restore(flags);
	agent_filter_free(old);
	return 0;
}

/* Follow no more; no function is traced now. Process context. */
void agent_follow_end(void)
{
	struct agent_followed *old = agent_packets;

	agent_filter_free(filter);
	filter = NULL;
	hash_init(heads);
	INIT_HLIST_HEAD(&spare);
	agent_packets = NULL;
	agent_recent_packet = &nobody;
	next_place = 0;
	kvfree(old);
}
