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

/* gdb stops here for the verdict "stop". The frames above: the trampoline, then the probed function at its entry. */
noinline void agent_stop(const struct sk_buff *skb)
{
	asm volatile("" : : "r"(skb) : "memory");
}

/* Rules can copy copies. A thousand times a thousand would keep the guest busy for ever. */
static u32 copies_of_copies = 1;

static bool would_be_too_many(const struct agent_arm *arm)
{
	return arm->verdict == AGENT_DUPLICATE && copies_of_copies * arm->copies > AGENT_MOST_COPIES;
}

/* The function runs for each copy before it runs for the packet itself. */
static void duplicate(const struct agent_rule *rule, const struct agent_regs *regs, const struct sk_buff *skb)
{
	const unsigned long address = regs->ip - AGENT_ENTRY_BYTES;
	const unsigned int argument = rule->arm.skb_argument;
	unsigned long arguments[AGENT_ARGUMENTS];
	const u16 number = rule->number; /* the rule may be disarmed while a copy runs */
	const u32 outer = copies_of_copies;

	copies_of_copies *= rule->arm.copies;
	for (unsigned int i = 0; i < AGENT_ARGUMENTS; i++)
		arguments[i] = agent_argument(regs, i);
	for (u32 left = rule->arm.copies; left; left--) {
		struct sk_buff *copy = skb_copy(skb, GFP_ATOMIC | __GFP_NOWARN);

		if (!copy) {
			agent_counts(number)->no_memory += left;
			break;
		}
		agent_counts(number)->duplicated++;
		arguments[argument] = (unsigned long)copy;
		agent_call(address, arguments);
	}
	copies_of_copies = outer;
}

/* Verdicts that run code of the network stack. Interrupts are as they were, and the agent is not busy. */
static void carry_out(u32 verdict, u32 reason, const struct agent_rule *rule, const struct agent_regs *regs,
		      struct sk_buff *skb)
{
	if (verdict == AGENT_DROP) {
		kfree_skb_reason(skb, reason);
	} else if (verdict == AGENT_DUPLICATE) {
		duplicate(rule, regs, skb);
	} else {
		agent_ring(); /* the host's doorbell, now: a debugger stops this kernel for a while */
		agent_stop(skb);
	}
}

/* Where a packet is at a function that is no step of its: in the call around, if that is the packet's, or at its last step. */
static struct agent_place place_of(const struct agent_regs *regs, const struct sk_buff *skb)
{
	const struct agent_followed *packet = agent_followed(skb);
	const struct agent_call *around;
	struct agent_place place = {};

	if (!packet)
		return place;
	place = agent_place_of(packet);
	around = agent_call_around(agent_calls_on(&regs->caller), &regs->caller);
	if (around && around->passage->part.step && around->packet == packet->number)
		place.call = around->number;
	return place;
}

/* A debugger has called the trampoline at a function's entry: hold that packet. */
struct agent_by_hand agent_by_hand;

static noinline bool hold_by_hand(struct agent_regs *regs)
{
	struct agent_probe probe = { .address = agent_by_hand.address };
	struct agent_rule rule = {
		.probe = &probe,
		.number = AGENT_BY_HAND,
		.arm = {
			.verdict = AGENT_HOLD,
			.captured_bytes = U16_MAX,
			.skb_argument = agent_by_hand.skb_argument,
			.device_arguments = agent_by_hand.device_arguments,
			.socket_arguments = agent_by_hand.socket_arguments,
			.net_arguments = agent_by_hand.net_arguments,
		},
	};
	struct sk_buff *skb = (struct sk_buff *)agent_argument(regs, agent_by_hand.skb_argument);

	agent_by_hand.address = 0;
	agent_by_hand.packet = agent_hold(&rule, regs, skb, place_of(regs, skb));
	regs->rax = (long)agent_by_hand.held_returns;
	return agent_by_hand.packet;
}

/* The rules of a probe. *place* is the traced packet's, if there is one. Returns as agent_hit(), and ends what it has begun. */
static noinline int apply_rules(struct agent_probe *probe, struct agent_regs *regs, struct agent_place place,
				unsigned long flags)
{
	struct agent_rule *rule;
	struct agent_counts *counts;
	struct sk_buff *skb;
	u32 verdict, reason;

	rule = agent_match(probe, regs, &skb);
	if (!rule) {
		busy = false;
		local_irq_restore(flags);
		return 0;
	}
	if (skb && (!place.packet || rule->arm.skb_argument != probe->passage.part.skb_argument))
		place = place_of(regs, skb); /* the trace has no step here, or one of another argument */
	counts = agent_counts(rule->number);
	verdict = rule->arm.verdict;
	reason = rule->arm.reason;
	if (verdict == AGENT_HOLD) {
		/* Without memory, a route that lasts, or room in the ring of events, the packet goes on. */
		if (agent_hold(rule, regs, skb, place)) {
			counts->held++;
			regs->rax = (long)rule->arm.held_returns;
			busy = false;
			local_irq_restore(flags);
			return 1;
		}
		verdict = AGENT_ACCEPT;
	} else if (would_be_too_many(&rule->arm)) {
		counts->too_many++;
		verdict = AGENT_ACCEPT;
	}
	if (verdict == AGENT_ACCEPT)
		counts->passed++;
	else
		agent_tell_hit(rule, regs, skb, 0, place);
	if (verdict == AGENT_TRACE)
		counts->traced++;
	if (verdict == AGENT_STOP)
		counts->stopped++;
	if (verdict == AGENT_DROP) {
		counts->dropped++;
		regs->rax = (long)rule->arm.dropped_returns;
	}
	busy = false;
	local_irq_restore(flags);
	if (verdict <= AGENT_TRACE)
		return 0;
	carry_out(verdict, reason, rule, regs, skb);
	return verdict == AGENT_DROP;
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
		if (probe && probe->passage.in_force)
			place = agent_entered(&probe->passage, regs);
		if (probe && !list_empty(&probe->rules))
			return apply_rules(probe, regs, place, flags);
	}
	busy = false;
	local_irq_restore(flags);
	return result;
}
