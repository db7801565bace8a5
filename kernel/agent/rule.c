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

/*
 * The first rule of a probe that matches; NULL where none matches, or where it accepts. *skb is the packet, NULL for a
 * function without one. *behind is the rule behind whose packets this one goes on, if it goes on; or NULL.
 */
struct agent_rule *agent_match(struct agent_probe *probe, const struct agent_regs *regs, struct sk_buff **skb,
			       struct agent_rule **behind)
{
	struct agent_rule *rule;
	bool wanted;

	*behind = NULL;
	list_for_each_entry(rule, &probe->rules, list) {
		*skb = NULL;
		if (rule->arm.skb_argument != AGENT_NO_PACKET) {
			*skb = (struct sk_buff *)agent_argument(regs, rule->arm.skb_argument);
			if (!agent_is_packet(*skb))
				continue;
			if (rule->arm.in_order && !*behind && agent_is_behind(rule))
				*behind = rule;
			if (rule->filter && !agent_takes(rule->filter, *skb))
				continue;
		}
		agent_counts(rule->number)->arrived++;
		wanted = is_wanted_occurrence(rule);
		if (wanted && rule->acts)
			return rule;
		agent_counts(rule->number)->passed++;
		if (wanted) {
			agent_counts(rule->number)->verdicts++;
			break; /* later rules do not see what one accepts */
		}
	}
	return NULL;
}
