// SPDX-License-Identifier: GPL-2.0-only
/* What happens when a probed function is entered. */
#include "calls.h"
#include "follow.h"
#include "probe.h"

/*
 * Set while the agent works with interrupts off: it calls functions that may be probed, too. Clear again when a verdict frees
 * the packet or sends a copy on: that is the kernel's work, and is probed.
 */
static bool busy;

/* Where a followed packet is at an untraced function: in the call around, if that is a step of the packet; else at its last step. */
static struct agent_place place_of(const struct agent_regs *regs, const struct sk_buff *skb)
{
	const struct agent_followed *packet = agent_followed(skb);
	const struct agent_call *around;
	struct agent_place place = {};

	if (!packet)
		return place;
	place = agent_place_of(packet);
	around = agent_call_around(agent_calls_on(&regs->caller), &regs->caller);
	if (around && around->probe->tracing.step && around->packet == packet->number)
		place.call = around->number;
	return place;
}

static noinline bool hold_by_hand(struct agent_regs *regs)
{
	struct sk_buff *skb = (struct sk_buff *)agent_argument(regs, agent_by_hand.skb_argument);

	return agent_hold_by_hand(regs, skb, place_of(regs, skb));
}

/* Apply the rules of a probe. place: that of the packet whose step this is, or zeros. Ends what agent_hit() has begun. */
static noinline int apply_rules(struct agent_probe *probe, struct agent_regs *regs, struct agent_place place,
				unsigned long flags)
{
	struct agent_rule *rule, *behind;
	struct sk_buff *skb;
	bool is_inside;
	u32 verdict;
	int result;

	rule = agent_match(probe, regs, &skb, &behind, &is_inside);
	if (!rule && !behind && !is_inside) {
		busy = false;
		local_irq_restore(flags);
		return 0;
	}
	if (unlikely(agent_packets) && rule && skb &&
	    (!place.packet || rule->arm.skb_argument != probe->tracing.skb_argument))
		place = place_of(regs, skb); /* the trace has no step here, or one of another argument */
	verdict = agent_verdict_begin(rule, behind, regs, skb, place);
	busy = false;
	local_irq_restore(flags);
	result = agent_verdict_finish(verdict, rule, regs, skb);
	return !result && is_inside ? agent_surround(regs) : result;
}

/* The trampoline calls this. 0: go on in the function. 1: return to its caller, with regs->rax as the value. */
int agent_hit(struct agent_regs *regs)
{
	const unsigned long address = regs->ip - AGENT_ENTRY_BYTES;
	struct agent_place place = {};
	struct agent_probe *probe;
	unsigned long flags;
	int result = 0;

	if (busy)
		return 0;
	local_irq_save(flags);
	busy = true;
	if (unlikely(agent_by_hand.address == address)) {
		result = hold_by_hand(regs);
	} else {
		probe = agent_probe_at(address);
		if (probe && probe->traced)
			place = agent_entered(probe, regs);
		if (probe && !list_empty(&probe->rules))
			return apply_rules(probe, regs, place, flags);
	}
	busy = false;
	local_irq_restore(flags);
	return result;
}
