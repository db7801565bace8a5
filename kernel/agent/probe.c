// SPDX-License-Identifier: GPL-2.0-only
/*
 * The probed functions with their rules, and the patching of functions. Text is written in process context only: a task
 * never sleeps between the NOPs of a function, but an interrupt may come there.
 */
#include <linux/hashtable.h>
#include <linux/ktime.h>
#include <linux/minmax.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/slab.h>

#include "host.h"
#include "probe.h"

#define HOST_PROT_READ_EXEC 5
#define HOST_PROT_ALL 7
#define MOST_NS (KTIME_MAX / 4) /* a sum with the time does not overflow */

static const u8 nops[AGENT_ENTRY_BYTES] = { 0x90, 0x90, 0x90, 0x90, 0x90 };
static DEFINE_HASHTABLE(probes, 12);
static struct agent_rule *rules[AGENT_RULES];
static struct agent_probe nowhere = { .next = &nowhere }; /* no function is at 0 */
struct agent_probe *agent_last_probe = &nowhere;
static unsigned int traced_probes;

int agent_write_entry(unsigned long address, const u8 *entry)
{
	unsigned long first = address & PAGE_MASK;
	unsigned long bytes = ((address + AGENT_ENTRY_BYTES - 1) & PAGE_MASK) - first + PAGE_SIZE;
	unsigned long flags;
	long result;

	/* In some kernels a module's text shares pages with its data, and is writable. */
	if (is_vmalloc_addr((void *)address)) {
		local_irq_save(flags);
		memcpy((void *)address, entry, AGENT_ENTRY_BYTES);
		local_irq_restore(flags);
		return 0;
	}
	result = agent_host_call(HOST_MPROTECT, first, bytes, HOST_PROT_ALL, 0, 0, 0);
	if (result < 0)
		return result;
	local_irq_save(flags);
	memcpy((void *)address, entry, AGENT_ENTRY_BYTES);
	local_irq_restore(flags);
	return agent_host_call(HOST_MPROTECT, first, bytes, HOST_PROT_READ_EXEC, 0, 0, 0);
}

/* Asked first, for copy_from_kernel_nofault() does not help: UML panics on a fault in it. */
static bool is_mapped(unsigned long address)
{
	return is_vmalloc_addr((void *)address) ? vmalloc_to_page((void *)address) != NULL :
						  virt_addr_valid((void *)address);
}

static int patch(unsigned long address)
{
	s64 distance = (s64)agent_trampoline - (s64)(address + AGENT_ENTRY_BYTES);
	u8 call[AGENT_ENTRY_BYTES] = { 0xe8 };

	if (distance != (s32)distance)
		return -ERANGE;
	if (!is_mapped(address) || !is_mapped(address + AGENT_ENTRY_BYTES - 1))
		return -EFAULT; /* of a module that was unloaded, or no address of the kernel's */
	if (memcmp((void *)address, nops, sizeof(nops)))
		return -EINVAL; /* not a function's entry, or built without the NOPs */
	memcpy(call + 1, &(s32){ distance }, sizeof(s32));
	return agent_write_entry(address, call);
}

struct agent_probe *agent_probe_find(unsigned long address)
{
	struct agent_probe *probe;

	hash_for_each_possible(probes, probe, node, address)
		if (probe->address == address)
			return probe;
	return NULL;
}

/* agent_probe_at() where the last probe was followed by another one the last time. */
struct agent_probe *agent_probe_after_last(unsigned long address)
{
	struct agent_probe *probe = agent_probe_find(address);

	if (probe && probe->traced) {
		agent_last_probe->next = probe;
		agent_last_probe = probe;
	}
	return probe;
}

static struct agent_probe *probe_for(unsigned long address)
{
	struct agent_probe *probe = agent_probe_find(address);
	unsigned long flags;
	int error;

	if (probe)
		return probe;
	probe = kzalloc(sizeof(*probe), GFP_KERNEL);
	if (!probe)
		return ERR_PTR(-ENOMEM);
	probe->address = address;
	probe->next = &nowhere;
	INIT_LIST_HEAD(&probe->rules);
	error = patch(address);
	if (error) {
		kfree(probe);
		return ERR_PTR(error);
	}
	local_irq_save(flags);
	hash_add(probes, &probe->node, address);
	agent_shared->probes++;
	local_irq_restore(flags);
	return probe;
}

/* Unpatch the function if its probe has no user left. Process context. */
static void leave_probe(struct agent_probe *probe)
{
	unsigned long flags;
	bool unused;

	local_irq_save(flags);
	unused = list_empty(&probe->rules) && !probe->traced;
	if (unused) {
		hash_del(&probe->node);
		agent_shared->probes--;
	}
	local_irq_restore(flags);
	if (unused) {
		agent_write_entry(probe->address, nops);
		kfree(probe);
	}
}

static void free_rule(struct agent_rule *rule)
{
	agent_filter_free(rule->filter);
	kfree(rule);
}

int agent_arm(const struct agent_arm *arm)
{
	struct agent_probe *probe;
	struct agent_rule *rule, *old;
	unsigned long flags;
	int error;

	if (arm->record.rule >= AGENT_BY_HAND)
		return -EINVAL;
	old = rules[arm->record.rule];
	if (old && old->probe->address != arm->address)
		return -EINVAL;
	if (arm->inside && (arm->inside > AGENT_BY_HAND || !rules[arm->inside - 1]))
		return -EINVAL;
	if (!agent_verdict_fits(arm) || max3(arm->delay_ns, arm->jitter_ns, arm->lease_ns) > MOST_NS)
		return -EINVAL;
	rule = kzalloc(sizeof(*rule), GFP_KERNEL);
	if (!rule)
		return -ENOMEM;
	rule->arm = *arm;
	rule->number = arm->record.rule;
	rule->acts = agent_verdict_acts(arm);
	rule->random = arm->seed ?: 1;
	error = agent_filter_create(&rule->filter, arm + 1, arm->filter_length, arm->conditions,
				    (const void *)arm + arm->record.bytes);
	if (error)
		goto free;
	probe = probe_for(arm->address);
	if (IS_ERR(probe)) {
		error = PTR_ERR(probe);
		goto free;
	}
	rule->probe = probe;
	if (!old)
		*agent_counts(rule->number) = (struct agent_counts){};
	local_irq_save(flags);
	rules[rule->number] = rule;
	if (old) { /* the same rule with another filter: its counts go on */
		rule->occurrence = old->occurrence;
		rule->random = old->random;
		rule->sent_ns = old->sent_ns;
		list_replace(&old->list, &rule->list);
	} else {
		if (arm->surrounds) /* first: it has no verdict, and no other rule's keeps it from matching */
			list_add(&rule->list, &probe->rules);
		else
			list_add_tail(&rule->list, &probe->rules);
	}
	local_irq_restore(flags);
	if (old)
		free_rule(old);
	return 0;

free:
	free_rule(rule);
	return error;
}

int agent_disarm(u16 number)
{
	struct agent_rule *rule = number < AGENT_RULES ? rules[number] : NULL;
	struct agent_probe *probe;
	unsigned long flags;

	if (!rule)
		return -ENOENT;
	probe = rule->probe;
	local_irq_save(flags);
	list_del(&rule->list);
	rules[number] = NULL;
	agent_inside_forget(number);
	local_irq_restore(flags);
	leave_probe(probe);
	free_rule(rule);
	agent_release_rule(number); /* before the answer: the host reads the counts then */
	return 0;
}

/* Arm a probe of the trace. */
int agent_trace_probe(const struct agent_trace_probe *command)
{
	const struct agent_tracing *tracing = &command->tracing;
	struct agent_probe *probe;
	unsigned long flags;

	if (command->record.rule >= AGENT_TRACE_PROBES || tracing->role > AGENT_BOUNDARY ||
	    (tracing->skb_argument >= AGENT_ARGUMENTS && tracing->skb_argument != AGENT_NO_PACKET) ||
	    tracing->argument >= AGENT_ARGUMENTS)
		return -EINVAL;
	probe = probe_for(command->address);
	if (IS_ERR(probe))
		return PTR_ERR(probe);
	if (probe->traced)
		return -EEXIST;
	local_irq_save(flags);
	probe->tracing = *tracing;
	probe->number = command->record.rule;
	probe->traced = true;
	local_irq_restore(flags);
	traced_probes++;
	return 0;
}

/* Disarm the trace's probes, all or a module's. probe->next goes, too: it may point to a probe that is freed here. */
static void leave_traced_probes(const struct module *module)
{
	struct agent_probe *probe;
	struct hlist_node *next;
	unsigned long flags;
	int bucket;

	local_irq_save(flags);
	agent_last_probe = nowhere.next = &nowhere;
	hash_for_each(probes, bucket, probe, node) {
		probe->next = &nowhere;
		if (probe->traced && (!module || within_module(probe->address, module))) {
			probe->traced = false;
			traced_probes--;
		}
	}
	local_irq_restore(flags);
	hash_for_each_safe(probes, bucket, next, probe, node)
		leave_probe(probe);
}

/* End the trace; false if no trace was running. */
bool agent_unfollow(void)
{
	bool any = traced_probes;

	agent_calls_end(); /* first: a call that has not returned points to its probe */
	leave_traced_probes(NULL);
	agent_follow_end();
	return any;
}

/* A module is being unloaded: packets that are held at its functions go on, and its functions are unpatched. */
void agent_disarm_module(struct module *module)
{
	for (unsigned int number = 0; number < AGENT_RULES; number++)
		if (rules[number] && within_module(rules[number]->probe->address, module))
			agent_disarm(number);
	agent_held_flush();
	leave_traced_probes(module);
}

/* End all rules and the trace; false if there was nothing to end. */
bool agent_disarm_all(void)
{
	bool any = agent_unfollow();

	agent_release_rule(AGENT_BY_HAND);
	for (unsigned int number = 0; number < AGENT_RULES; number++)
		if (rules[number]) {
			agent_disarm(number);
			any = true;
		}
	return any;
}
