// SPDX-License-Identifier: GPL-2.0-only
/* What each verdict does to a packet. CONTRIBUTING.md says how to add one. */
#include "agent.h"

enum agent_verdict { /* src/skblab/verdict.py has the words, with the same numbers */
	AGENT_ACCEPT = 0,
	AGENT_TRACE = 1,
	AGENT_HOLD = 2, /* delay, rate, edit and corrupt, too */
	AGENT_DROP = 3,
	AGENT_DUPLICATE = 4,
	AGENT_STOP = 5,
	AGENT_RETURN = 6,
};

/* gdb stops here for the verdict "stop". The frames above: the trampoline, then the probed function at its entry. */
noinline void agent_stop(const struct sk_buff *skb)
{
	asm volatile("" : : "r"(skb) : "memory");
}

/*
 * Rules can copy copies. A thousand times a thousand would keep the guest busy for ever. A softirq that interrupts a copy
 * brings packets that are no copies.
 */
static u32 copies_of_copies[] = { 1, 1 };

static u32 *copies_here(void)
{
	return &copies_of_copies[!!in_serving_softirq()];
}

static bool would_be_too_many(const struct agent_arm *arm)
{
	return *copies_here() * arm->argument > AGENT_MOST_COPIES;
}

/* The function runs for each copy before it runs for the packet itself. Returns as agent_hit(). */
static int duplicate(const struct agent_rule *rule, struct agent_regs *regs, struct sk_buff *skb)
{
	const unsigned long address = regs->ip - AGENT_ENTRY_BYTES;
	const unsigned int argument = rule->arm.skb_argument;
	unsigned long arguments[AGENT_ARGUMENTS];
	const u16 number = rule->number; /* the rule may be disarmed while a copy runs */
	const struct agent_again again = agent_again_by(number, &rule->arm);
	const u32 rule_copies = rule->arm.argument;
	u32 *const copies = copies_here();
	const u32 outer = *copies;

	*copies *= rule_copies;
	for (unsigned int i = 0; i < AGENT_ARGUMENTS; i++)
		arguments[i] = agent_argument(regs, i);
	for (u32 left = rule_copies; left; left--) {
		struct sk_buff *copy = skb_copy(skb, GFP_ATOMIC | __GFP_NOWARN);

		if (!copy) {
			agent_counts(number)->no_memory += left;
			break;
		}
		agent_counts(number)->duplicated++;
		if (left == rule_copies)
			agent_counts(number)->verdicts++;
		arguments[argument] = (unsigned long)copy;
		agent_call_again(&again, address, arguments, copy, 0); /* a step of its own, where it is followed */
	}
	*copies = outer;
	if (agent_may_go_on(&again, arguments, skb))
		return 0;
	regs->rax = NETDEV_TX_BUSY;
	return 1;
}

/* A debugger has called the trampoline at a function's entry: hold that packet. */
struct agent_by_hand agent_by_hand;

bool agent_hold_by_hand(struct agent_regs *regs, struct sk_buff *skb, struct agent_place place)
{
	struct agent_probe probe = { .address = agent_by_hand.address };
	struct agent_rule rule = {
		.probe = &probe,
		.number = AGENT_BY_HAND,
		.arm = {
			.verdict = AGENT_HOLD,
			.captured_bytes = U16_MAX,
			.taken_from = agent_by_hand.taken_from,
			.taken_to = agent_by_hand.taken_to,
			.skb_argument = agent_by_hand.skb_argument,
			.device_arguments = agent_by_hand.device_arguments,
			.socket_arguments = agent_by_hand.socket_arguments,
			.net_arguments = agent_by_hand.net_arguments,
			.transmits = agent_by_hand.transmits,
		},
	};

	agent_by_hand.address = 0;
	agent_by_hand.packet = agent_hold(&rule, regs, skb, place);
	regs->rax = (long)agent_by_hand.held_returns;
	return agent_by_hand.packet;
}

/* Can a rule be armed with this verdict and its argument, at a function with or without a packet? */
bool agent_verdict_fits(const struct agent_arm *arm)
{
	if (arm->skb_argument == AGENT_NO_PACKET)
		return arm->verdict <= AGENT_TRACE || (arm->verdict == AGENT_RETURN && !arm->frees);
	if (arm->verdict == AGENT_DUPLICATE && (u64)arm->argument > AGENT_MOST_COPIES)
		return false;
	if (arm->verdict == AGENT_HOLD && arm->argument < 0)
		return false;
	return arm->skb_argument < AGENT_ARGUMENTS;
}

/* Asked when a rule is armed, so that a packet that is accepted costs no call of a verdict. */
bool agent_verdict_acts(const struct agent_arm *arm)
{
	return arm->verdict != AGENT_ACCEPT;
}

/* Report and count. Returns the verdict to finish, which is AGENT_ACCEPT where the rule's cannot be carried out. */
static u32 begin(struct agent_rule *rule, struct agent_regs *regs, struct sk_buff *skb, struct agent_place place)
{
	struct agent_counts *counts = agent_counts(rule->number);
	u32 verdict = rule->arm.verdict;

	if (verdict == AGENT_HOLD) {
		/* Without memory, a route that lasts, or room in the ring of events, the packet goes on. */
		const u64 packet = agent_hold(rule, regs, skb, place);

		if (packet) {
			counts->held++;
			counts->verdicts++;
			if (rule->arm.at_once && agent_goes_on(packet))
				return AGENT_ACCEPT;
			regs->rax = (long)rule->arm.held_returns;
			return verdict;
		}
		verdict = AGENT_ACCEPT;
	} else if (verdict == AGENT_DUPLICATE && would_be_too_many(&rule->arm)) {
		counts->too_many++;
		verdict = AGENT_ACCEPT;
	}
	if (verdict == AGENT_ACCEPT) {
		counts->passed++;
		return verdict;
	}
	agent_tell_hit(rule, regs, skb, 0, place);
	if (verdict != AGENT_DUPLICATE) /* which counts once there is a copy */
		counts->verdicts++;
	switch (verdict) {
	case AGENT_TRACE:
		counts->traced++;
		break;
	case AGENT_DROP:
		counts->dropped++;
		regs->rax = (long)rule->arm.dropped_returns;
		break;
	case AGENT_STOP:
		counts->stopped++;
		break;
	case AGENT_RETURN:
		regs->rax = rule->arm.argument;
		break;
	}
	return verdict;
}

/*
 * First, with interrupts off: rule, if one matches, is begun. behind: a rule whose packets go on first, if this one goes on.
 * Returns the verdict to finish.
 */
u32 agent_verdict_begin(struct agent_rule *rule, const struct agent_rule *behind, struct agent_regs *regs,
			struct sk_buff *skb, struct agent_place place)
{
	const u32 verdict = rule ? begin(rule, regs, skb, place) : AGENT_ACCEPT;
	const bool goes_on = verdict == AGENT_ACCEPT || verdict == AGENT_TRACE;

	return behind && goes_on && agent_follow_held(behind, regs) ? AGENT_HOLD : verdict;
}

/*
 * Then, with interrupts as they were: what runs code of the network stack, whose functions may be probed. Returns as
 * agent_hit().
 */
int agent_verdict_finish(u32 verdict, const struct agent_rule *rule, struct agent_regs *regs, struct sk_buff *skb)
{
	switch (verdict) {
	case AGENT_HOLD:
		return 1;
	case AGENT_DROP:
		kfree_skb_reason(skb, rule->arm.reason);
		return 1;
	case AGENT_RETURN:
		if (rule->arm.frees)
			kfree_skb_reason(skb, rule->arm.reason);
		return 1;
	case AGENT_DUPLICATE:
		return duplicate(rule, regs, skb);
	case AGENT_STOP:
		agent_ring(); /* the host's doorbell, now: a debugger stops this kernel for a while */
		agent_stop(skb);
		return 0;
	default:
		return 0;
	}
}
