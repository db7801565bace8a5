/* SPDX-License-Identifier: GPL-2.0-only */
/* Which packets are followed: what every step needs. The rest is in follow.c. */
#ifndef SKBLAB_FOLLOW_H
#define SKBLAB_FOLLOW_H

#include "agent.h"

struct agent_followed { /* one packet's bytes: all skbs with this head */
	struct hlist_node node;
	u64 head;
	u32 number;
	u32 last_call; /* agent_step.call of its last step, or 0 */
	bool is_new; /* a call has made it, and it has no step yet */
	u16 captured_bytes;
	u64 seen[AGENT_SEEN_BYTES / sizeof(u64)];
};

extern struct agent_follow agent_following;
extern u32 agent_following_bytes; /* of all fields */
#define AGENT_NAMED 64
extern const struct net_device *agent_devices_named[AGENT_NAMED]; /* n: the last of those with index % AGENT_NAMED == n */
extern struct agent_followed *agent_packets; /* NULL: there is no trace */
extern struct agent_followed *agent_recent_packet; /* of the last step */

struct agent_followed *agent_followed(const struct sk_buff *skb);
struct agent_followed *agent_meet_another(struct sk_buff *skb);
struct agent_followed *agent_follow_new(const struct sk_buff *skb);
void agent_follow_moved(const struct sk_buff *skb, u32 number, u64 old_head, bool shared);
void agent_forget(u64 head);

/* The followed packet of an skb that enters a function; followed from now on if the filter takes it. Else NULL. */
static __always_inline struct agent_followed *agent_meet(struct sk_buff *skb)
{
	struct agent_followed *packet = agent_recent_packet;

	if (unlikely(packet->head != (u64)skb->head))
		return agent_meet_another(skb);
	packet->is_new = false;
	return packet;
}

static __always_inline struct agent_place agent_place_of(const struct agent_followed *packet)
{
	return (struct agent_place){ .packet = packet->number, .call = packet->last_call };
}

#endif
