// SPDX-License-Identifier: GPL-2.0-only
/* What happens when a probed function is entered. */
#include "probe.h"

/*
 * Set while the agent itself works with interrupts off: what it calls may be probed too, and is left alone. What a
 * verdict sets going (a free, a copy's way) comes after, and is not ours.
 */
static bool busy;

/* gdb stops here (verdict "stop"): the frames above are the trampoline's, then the probed function at its entry. */
noinline void agent_stop(const struct sk_buff *skb)
{
	asm volatile("" : : "r"(skb) : "memory");
}

/* Rules may copy what others have copied: a thousand times a thousand would be the last that the guest does. */
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
	const u16 number = rule->number; /* the rule may be gone when a copy's way has ended */
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

/* Do what may set other packets going. */
static void carry_out(u32 verdict, u32 reason, const struct agent_rule *rule, const struct agent_regs *regs,
		      struct sk_buff *skb)
{
	if (verdict == AGENT_DROP) {
		kfree_skb_reason(skb, reason);
	} else if (verdict == AGENT_DUPLICATE) {
		duplicate(rule, regs, skb);
	} else {
		agent_ring(); /* there will be no other time to, for a while */
		agent_stop(skb);
	}
}

/* A debugger has called the trampoline where it found a packet: hold that one. */
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

	agent_by_hand.address = 0;
	agent_by_hand.packet =
		agent_hold(&rule, regs, (struct sk_buff *)agent_argument(regs, agent_by_hand.skb_argument));
	regs->rax = (long)agent_by_hand.held_returns;
	return agent_by_hand.packet;
}

/* A probe has rules, and a packet may meet one. Returns as agent_hit(), and ends what that has begun. */
static noinline int apply_rules(struct agent_probe *probe, struct agent_regs *regs, unsigned long flags)
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
	counts = agent_counts(rule->number);
	verdict = rule->arm.verdict;
	reason = rule->arm.reason;
	if (verdict == AGENT_HOLD) {
		/* Not held for want of memory, of a route that lasts, or of room to tell: the packet goes on. */
		if (agent_hold(rule, regs, skb)) {
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
		agent_tell_hit(rule, regs, skb, 0);
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

/* 0: go on in the function. 1: back to its caller, with regs->rax. */
int agent_hit(struct agent_regs *regs)
{
	const unsigned long address = regs->ip - AGENT_ENTRY_BYTES;
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
			agent_passed(&probe->passage, regs);
		if (probe && !list_empty(&probe->rules))
			return apply_rules(probe, regs, flags);
	}
	busy = false;
	local_irq_restore(flags);
	return result;
}
