// SPDX-License-Identifier: GPL-2.0-only
/* A traced function is entered: is its packet followed, and is its return of interest? Interrupts are off. */
#include "calls.h"
#include "follow.h"
#include "packet.h"
#include "probe.h"
#include "step.h"

static bool needs_return(const struct agent_tracing *tracing)
{
	switch (tracing->role) {
	case AGENT_BORN:
	case AGENT_COPIED:
	case AGENT_MOVED:
	case AGENT_MERGED:
	case AGENT_COALESCED:
	case AGENT_BOUNDARY:
		return true;
	default:
		return tracing->returns;
	}
}

/* Is this the last skb with these bytes? (net/core/skbuff.c skb_release_data(), include/linux/skbuff.h skb_data_unref()) */
static bool is_last(const struct sk_buff *skb)
{
	return !skb->cloned ||
	       atomic_read(&skb_shinfo(skb)->dataref) == (skb->nohdr ? (1 << SKB_DATAREF_SHIFT) + 1 : 1);
}

static u32 number_of(const struct sk_buff *skb)
{
	struct agent_followed *packet = agent_is_packet(skb) ? agent_followed(skb) : NULL;

	return packet ? packet->number : 0;
}

/* Returns where the packet is now; zeros where it is not followed. */
static struct agent_place enter(const struct agent_probe *probe, struct agent_regs *regs, struct sk_buff *skb,
				bool may_hook)
{
	const struct agent_tracing *tracing = &probe->tracing;
	struct agent_followed *packet = NULL;
	struct agent_calls *calls = agent_calls_on(&regs->caller);
	const struct agent_call *around = agent_call_around(calls, &regs->caller);
	const u32 because = around ? around->packet : 0;
	struct agent_entry entry = {
		.caller = agent_call_caller((unsigned long)&regs->caller),
		.outer = around ? around->number : 0,
	};
	struct agent_call *call = NULL;
	struct agent_place place = {};
	u64 at_ns;

	if (tracing->skb_argument != AGENT_NO_PACKET) {
		packet = agent_is_packet(skb) ? agent_meet(skb) : NULL;
		if (!packet)
			return place;
	} else if (!because) {
		return place;
	}
	if (may_hook && needs_return(tracing))
		call = agent_call_begin(calls, &regs->caller);
	if (call) {
		call->probe = probe;
		call->skb = skb;
		call->head = skb ? (u64)skb->head : 0;
		call->shared = skb && skb_cloned(skb);
		call->packet = packet ? packet->number : because;
		if (tracing->role == AGENT_BOUNDARY)
			call->packet = 0;
		else if (!tracing->step)
			call->number = entry.outer; /* this call has no step: what it calls is shown in the call around */
		call->other = 0;
		if (tracing->role == AGENT_MERGED || tracing->role == AGENT_COALESCED)
			call->other = number_of((const struct sk_buff *)agent_argument(regs, tracing->argument));
	}
	if (tracing->role == AGENT_ENDS && is_last(skb))
		entry.flags = AGENT_FREED;
	if (tracing->step) {
		entry.call = call ? call->number : agent_call_number();
		at_ns = agent_write_step(probe, regs, skb, packet, &entry);
		if (call)
			call->at_ns = at_ns;
	}
	if (packet)
		place = agent_place_of(packet);
	if (entry.flags & AGENT_FREED)
		agent_forget((u64)skb->head);
	return place;
}

/* A probed function of the trace is entered. Returns where its packet is; of a list, the first that is followed. */
struct agent_place agent_entered(const struct agent_probe *probe, struct agent_regs *regs)
{
	const struct agent_tracing *tracing = &probe->tracing;
	const unsigned long argument =
		tracing->skb_argument != AGENT_NO_PACKET ? agent_argument(regs, tracing->skb_argument) : 0;
	const struct list_head *list = (const struct list_head *)argument;
	struct agent_place place = {};

	switch (tracing->indirection) {
	case AGENT_BY_POINTER:
		return enter(probe, regs, virt_addr_valid(argument) ? *(struct sk_buff **)argument : NULL, true);
	case AGENT_IN_LIST:
		for (const struct list_head *at = list->next; at != list; at = at->next) {
			struct sk_buff *skb = list_entry((void *)at, struct sk_buff, list);
			const struct agent_place its = enter(probe, regs, skb, !place.packet);

			if (!place.packet)
				place = its; /* and the call is this packet's */
		}
		return place;
	default:
		return enter(probe, regs, (struct sk_buff *)argument, true);
	}
}

/*
 * Call a function with a packet that was held there, or with a copy; flags: of the step that a followed packet makes of it.
 * Returns what the function returns, an int. The agent is the caller, so a word of its own stack stands in the place of the
 * return address.
 */
long agent_resume(unsigned long address, const unsigned long *arguments, struct sk_buff *skb, u32 flags)
{
	const struct agent_probe *probe;
	struct agent_followed *packet = NULL;
	struct agent_call *call = NULL;
	unsigned long slot = 0, interrupts;
	long value;

	local_irq_save(interrupts);
	probe = agent_probe_find(address);
	if (probe && probe->traced)
		packet = agent_followed(skb);
	if (packet) {
		struct agent_calls *calls = agent_calls_on(&slot);

		agent_call_around(calls, &slot);
		call = agent_call_begin(calls, &slot);
	}
	if (call) {
		const struct agent_entry entry = { .call = call->number, .flags = flags };

		call->probe = probe;
		call->packet = packet->number;
		call->other = 0;
		call->at_ns = agent_write_step(probe, NULL, skb, packet, &entry);
	}
	local_irq_restore(interrupts);
	value = agent_call(address, arguments);
	if (call) {
		local_irq_save(interrupts);
		if (slot == (unsigned long)agent_return) /* agent_calls_end() puts another word there */
			agent_resumed(&slot, value);
		local_irq_restore(interrupts);
	}
	return (int)value;
}
