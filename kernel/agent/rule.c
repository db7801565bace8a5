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

/* Is the call one that the rule's filter takes? *skb is the packet, NULL for a function without one. */
bool agent_takes_call(const struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff **skb)
{
	*skb = NULL;
	if (rule->arm.skb_argument == AGENT_NO_PACKET)
		return true;
	*skb = (struct sk_buff *)agent_argument(regs, rule->arm.skb_argument);
	return agent_is_packet(*skb) && (!rule->filter || agent_takes(rule->filter, *skb));
}

/*
 * The first rule of a probe that matches; NULL where none matches, or where it accepts. *skb is its packet. *behind is the rule
 * behind whose packets this one goes on, if it goes on; or NULL. *is_inside: rules surround calls here (inside.c).
 */
struct agent_rule *agent_match(struct agent_probe *probe, const struct agent_regs *regs, struct sk_buff **skb,
			       struct agent_rule **behind, bool *is_inside)
{
	struct agent_rule *rule;
	bool wanted;

	*behind = NULL;
	*is_inside = false;
	list_for_each_entry(rule, &probe->rules, list) {
		if (unlikely(rule->arm.surrounds)) {
			*is_inside = true;
			continue;
		}
		if (rule->arm.in_order && !*behind && agent_is_behind(rule) &&
		    agent_is_packet((struct sk_buff *)agent_argument(regs, rule->arm.skb_argument)))
			*behind = rule;
		if (!agent_takes_call(rule, regs, skb) || (rule->arm.inside && !agent_is_inside(rule->arm.inside - 1)))
			continue;
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
