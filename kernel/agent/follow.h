/* SPDX-License-Identifier: GPL-2.0-only */
/* Which packets are followed: what is asked at each step. The rest is in follow.c. */
#ifndef SKBLAB_FOLLOW_H
#define SKBLAB_FOLLOW_H

#include "agent.h"

struct agent_followed { /* one packet's bytes: all skbs with this head */
	struct hlist_node node;
	u64 head;
	u32 number;
	bool is_new; /* brought forth by a call, and at no step yet */
	u16 captured_bytes;
	u64 seen[AGENT_SEEN_BYTES / sizeof(u64)];
};

extern struct agent_follow agent_following;
extern u32 agent_following_bytes; /* of all fields */
#define AGENT_TOLD 64
extern const struct net_device *agent_devices_told[AGENT_TOLD]; /* n: of the devices of index n % AGENT_TOLD */
extern struct agent_followed *agent_recent_packet; /* that was met */

struct agent_followed *agent_followed(const struct sk_buff *skb);
struct agent_followed *agent_meet_another(struct sk_buff *skb);
struct agent_followed *agent_follow_as(const struct sk_buff *skb, u32 number);
void agent_forget(u64 head);

/* A packet is where a function is passed: the one that is followed, or that is from now on, or NULL. */
static __always_inline struct agent_followed *agent_meet(struct sk_buff *skb)
{
	struct agent_followed *packet = agent_recent_packet;

	if (unlikely(packet->head != (u64)skb->head))
		return agent_meet_another(skb);
	packet->is_new = false;
	return packet;
}

#endif
