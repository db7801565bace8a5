/* SPDX-License-Identifier: GPL-2.0-only */
/* The record of a step: a followed packet enters a function. What is rare is in step.c. */
#ifndef SKBLAB_STEP_H
#define SKBLAB_STEP_H

#include "clock.h"
#include "follow.h"
#include "packet.h"
#include "ring.h"

struct agent_entry { /* of a function */
	unsigned long caller; /* the return address */
	u32 call; /* its number */
	u32 outer; /* the call around it, or 0 */
	u8 flags; /* enum agent_step_flags */
};

void agent_write_device(const struct net_device *device);
u32 agent_stack_of_drop(const struct agent_tracing *tracing, const struct agent_regs *regs, unsigned long caller, u32 reason,
			const u64 **words);

/* Are these the bytes of the packet's last step? */
static __always_inline bool agent_is_as_seen(const struct agent_followed *packet, const u8 *bytes, u32 count)
{
	const u8 *seen = (const u8 *)packet->seen;
	u32 i = 0;

	if (packet->captured_bytes != count)
		return false;
	for (; i + sizeof(u64) <= count; i += sizeof(u64))
		if (get_unaligned((const u64 *)(bytes + i)) != get_unaligned((const u64 *)(seen + i)))
			return false;
	for (; i < count; i++)
		if (bytes[i] != seen[i])
			return false;
	return true;
}

/* Write a step; regs is NULL for a held packet that goes on. Returns the step's time. Interrupts are off. */
static __always_inline u64 agent_write_step(const struct agent_probe *probe, const struct agent_regs *regs,
					    const struct sk_buff *skb, struct agent_followed *packet,
					    const struct agent_entry *entry)
{
	const struct agent_tracing *tracing = &probe->tracing;
	const bool lets_go = regs && tracing->role == AGENT_DROPS;
	const u32 reason = lets_go ? agent_argument(regs, tracing->argument) : 0;
	const u64 *words = NULL;
	const u32 stack = lets_go ? agent_stack_of_drop(tracing, regs, entry->caller, reason, &words) : 0;
	const int offset = skb ? agent_network_offset(skb) : 0;
	const u8 *bytes = skb ? skb->data + offset : NULL;
	const u32 seen = skb ? clamp_t(int, (int)skb_headlen(skb) - offset, 0, AGENT_SEEN_BYTES) : 0;
	const bool changed = skb && !agent_is_as_seen(packet, bytes, seen);
	const u32 captured = changed ? seen : 0;
	const u32 fields = skb ? ALIGN(agent_following_bytes, 8) : 0;
	const bool more = skb && (skb->mark || skb->hash || lets_go);
	const struct net_device *device = skb ? agent_device_of(skb) : NULL;
	const u64 now_ns = agent_now_ns();
	struct agent_step *step;
	u8 *end;

	if (device && unlikely(agent_devices_named[device->ifindex % AGENT_NAMED] != device))
		agent_write_device(device);
	step = agent_step_begin(AGENT_STEP, probe->number,
				sizeof(*step) + (more ? sizeof(struct agent_more) : 0) + ALIGN(captured, 8) + fields +
					stack * sizeof(u64));
	if (!step)
		return now_ns;
	step->at_ns = now_ns;
	step->packet = packet ? packet->number : 0;
	step->call = entry->call;
	step->outer = entry->outer;
	step->length = skb ? skb->len : 0;
	step->skb = (u64)skb;
	step->caller = entry->caller;
	step->data_offset = -offset;
	step->protocol = skb ? ntohs(skb->protocol) : 0;
	step->device = device ? device->ifindex : 0;
	step->captured_bytes = captured;
	step->flags = entry->flags | (skb && skb_cloned(skb) ? AGENT_SHARED_HEAD : 0) | (more ? AGENT_MORE : 0) |
		      (lets_go ? AGENT_LET_GO : 0) | (changed ? AGENT_CHANGED : 0);
	end = (u8 *)(step + 1);
	if (more) {
		*(struct agent_more *)end = (struct agent_more){ .mark = skb->mark, .hash = skb->hash, .reason = reason };
		end += sizeof(struct agent_more);
	}
	if (unlikely(changed)) {
		memcpy(end, bytes, captured);
		memcpy(packet->seen, bytes, captured);
		packet->captured_bytes = captured;
		end += ALIGN(captured, 8);
	}
	if (unlikely(fields))
		agent_fields_copy(skb, end);
	if (unlikely(stack))
		memcpy(end + fields, words, stack * sizeof(u64));
	agent_step_end(step);
	if (packet)
		packet->last_call = entry->call;
	return now_ns;
}

#endif
