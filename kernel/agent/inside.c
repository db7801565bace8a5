// SPDX-License-Identifier: GPL-2.0-only
/*
 * Rules that match only while a call of another function is running: that function has a rule that surrounds. Where it takes a
 * packet, the agent calls the function itself, and so knows when it returns; the function's caller gets its return value.
 */
#include <linux/module.h>
#include <linux/sched/task.h>

#include "probe.h"

#define CALLS 64 /* at once: calls that sleep, and calls in calls */
#define MOST_RULES 8 /* of one function */
#define WORDS 32ul

/* Call the probed function again, with as many words of the stack behind its caller's address (trampoline.S). */
unsigned long agent_call_as(const struct agent_regs *regs, unsigned long words);

struct surrounded { /* a call that is running */
	struct list_head list;
	struct task_struct *task; /* with a reference: no other task is mistaken for one that has died inside the call */
	unsigned int context; /* a softirq that interrupts the call is not inside it */
	u8 rules;
	u16 rule[MOST_RULES];
};

static struct surrounded calls[CALLS], too_many;
static LIST_HEAD(running);

static unsigned int context_now(void)
{
	return in_serving_softirq() | (!!in_hardirq() << 1);
}

static void end(struct surrounded *call)
{
	struct task_struct *task = call->task;
	unsigned long flags;

	local_irq_save(flags);
	list_del(&call->list);
	call->task = NULL;
	local_irq_restore(flags);
	put_task_struct(task);
	module_put(THIS_MODULE);
}

/* A task that dies, by exit(2) or a signal, leaves calls without a return, such as do_exit(). Interrupts are off. */
static void end_dead(void)
{
	struct surrounded *call, *next;

	list_for_each_entry_safe(call, next, &running, list)
		if (call->task != current && READ_ONCE(call->task->__state) == TASK_DEAD)
			end(call);
}

static struct surrounded *spare_call(void)
{
	for (unsigned int i = 0; i < CALLS; i++)
		if (!calls[i].task)
			return &calls[i];
	return &too_many;
}

/* Which rules surround the call? Those that are too many are counted. Interrupts are off. */
static void find_rules(struct surrounded *call, const struct agent_regs *regs)
{
	const struct agent_probe *probe = agent_probe_find(regs->ip - AGENT_ENTRY_BYTES);
	const struct agent_rule *rule;
	struct sk_buff *skb;

	call->rules = 0;
	if (!probe)
		return;
	list_for_each_entry(rule, &probe->rules, list) {
		if (!rule->arm.surrounds || !agent_takes_call(rule, regs, &skb))
			continue;
		if (call == &too_many || call->rules == MOST_RULES) {
			agent_counts(rule->number)->too_many++;
			continue;
		}
		agent_counts(rule->number)->arrived++;
		call->rule[call->rules++] = rule->number;
	}
}

/* NULL where no rule surrounds the call, or, counted, where too many calls are running, or the agent is being unloaded. */
static struct surrounded *begin(const struct agent_regs *regs)
{
	struct surrounded *call;
	unsigned long flags;

	local_irq_save(flags);
	end_dead();
	call = spare_call();
	find_rules(call, regs);
	if (call->rules && try_module_get(THIS_MODULE)) { /* the call returns to the agent's code */
		call->task = get_task_struct(current);
		call->context = context_now();
		list_add(&call->list, &running);
	} else {
		call = NULL;
	}
	local_irq_restore(flags);
	return call;
}

/* How many words of the caller's stack are passed, too: of its arguments beyond the sixth its type need not tell (printk()). */
static unsigned long words_behind(const struct agent_regs *regs)
{
	const unsigned long stack = (unsigned long)(regs + 1);

	return min((ALIGN(stack, THREAD_SIZE) - stack) / sizeof(long), WORDS);
}

/* Call the function that was entered, inside the rules that surround it. Returns as agent_hit(). */
int agent_surround(struct agent_regs *regs)
{
	struct surrounded *call = begin(regs);

	if (!call)
		return 0;
	regs->rax = agent_call_as(regs, words_behind(regs));
	end(call);
	return 1;
}

static bool has(const struct surrounded *call, u16 rule)
{
	for (unsigned int i = 0; i < call->rules; i++)
		if (call->rule[i] == rule)
			return true;
	return false;
}

/* Is a call that this rule surrounds running here? Interrupts are off. */
bool agent_is_inside(u16 rule)
{
	const struct surrounded *call;

	list_for_each_entry(call, &running, list)
		if (call->task == current && call->context == context_now() && has(call, rule))
			return true;
	return false;
}

/* Another rule may get the number while a call is still running. Interrupts are off. */
void agent_inside_forget(u16 rule)
{
	struct surrounded *call;

	end_dead();
	list_for_each_entry(call, &running, list)
		for (unsigned int i = 0; i < call->rules; i++)
			if (call->rule[i] == rule)
				call->rule[i] = AGENT_BY_HAND; /* which surrounds nothing */
}
