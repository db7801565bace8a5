// SPDX-License-Identifier: GPL-2.0-only
/* Does a packet match a rule: its filter (filter.c), then its occurrence. Interrupts are off. */
#include <linux/math64.h>

#include "packet.h"

/* The rule's next random number; its seed determines it. */
u32 agent_random(struct agent_rule *rule)
{
	u32 x = rule->random; /* xorshift32: George Marsaglia, "Xorshift RNGs", 2003 */

	x ^= x << 13;
	x ^= x >> 17;
	x ^= x << 5;
	return rule->random = x;
}

static bool is_wanted_occurrence(struct agent_rule *rule)
{
	const struct agent_arm *arm = &rule->arm;
	u64 count = ++rule->occurrence;

	if (count < arm->first || (arm->last && count > arm->last))
		return false;
	if (arm->every > 1) {
		u64 since = count - arm->first + 1;

		if (since != div64_u64(since, arm->every) * arm->every)
			return false;
	}
	return !arm->chance || agent_random(rule) < arm->chance;
}

/* Find the rules of a probe that match a call. */
void agent_match(struct agent_probe *probe, const struct agent_regs *regs, struct agent_matched *matched)
{
	struct agent_rule *rule;
	bool wanted;

	matched->rule = matched->behind = NULL;
	matched->arounds = 0;
	list_for_each_entry(rule, &probe->rules, list) {
		matched->skb = NULL;
		if (rule->arm.skb_argument != AGENT_NO_PACKET) {
			matched->skb = (struct sk_buff *)agent_argument(regs, rule->arm.skb_argument);
			if (!agent_is_packet(matched->skb))
				continue;
			if (rule->arm.in_order && !matched->behind && agent_is_behind(rule))
				matched->behind = rule;
			if (rule->filter && !agent_takes(rule->filter, matched->skb))
				continue;
		}
		if (rule->arm.inside && !agent_is_inside(rule->arm.inside - 1))
			continue;
		if (rule->arm.surrounds) {
			if (matched->arounds < AGENT_AROUNDS)
				matched->around[matched->arounds++] = rule->number;
			else
				agent_counts(rule->number)->too_many++;
			continue;
		}
		agent_counts(rule->number)->arrived++;
		wanted = is_wanted_occurrence(rule);
		if (wanted && rule->acts) {
			matched->rule = rule;
			return;
		}
		agent_counts(rule->number)->passed++;
		if (wanted) {
			agent_counts(rule->number)->verdicts++;
			return; /* later rules do not see what one accepts */
		}
	}
}
