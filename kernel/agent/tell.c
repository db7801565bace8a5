// SPDX-License-Identifier: GPL-2.0-only
/* The events that the host gets. */
#include <linux/pid_namespace.h>
#include <linux/sched/signal.h>

#include "clock.h"
#include "packet.h"

/* A packet met a rule; false where there was no room to say so. Interrupts are off. */
bool agent_tell_hit(const struct agent_rule *rule, const struct agent_regs *regs, const struct sk_buff *skb, u64 packet,
		    struct agent_place place)
{
	const int offset = skb ? agent_network_offset(skb) : 0;
	const struct net_device *device = skb ? agent_device_of(skb) : NULL;
	const u32 captured = skb ? min_t(u32, skb->len - offset, rule->arm.captured_bytes) : 0;
	const bool unfinished = skb && skb->ip_summed == CHECKSUM_PARTIAL && skb_checksum_start_offset(skb) > offset;
	const u64 *words = NULL;
	const u32 stack = rule->arm.text_end ? agent_stack(rule->arm.text_start, rule->arm.text_end, regs, &words) * sizeof(*words) : 0;
	struct agent_hit *hit =
		agent_event_begin(AGENT_HIT, rule->number, sizeof(*hit) + ALIGN(captured, 8) + stack);

	if (!hit)
		return false;
	hit->at_ns = agent_now_ns();
	hit->packet = packet;
	hit->occurrence = rule->occurrence;
	hit->skb = (u64)skb;
	hit->head = skb ? (u64)skb->head : 0;
	hit->address = rule->probe->address;
	hit->verdict = rule->arm.verdict;
	hit->length = skb ? skb->len : 0;
	hit->data_offset = -offset;
	hit->mark = skb ? skb->mark : 0;
	hit->device = device ? device->ifindex : 0;
	hit->followed = place.packet;
	hit->call = place.call;
	hit->protocol = skb ? ntohs(skb->protocol) : 0;
	hit->captured_bytes = captured;
	hit->checksum_start = unfinished ? skb_checksum_start_offset(skb) - offset : 0;
	hit->checksum_offset = unfinished ? skb->csum_offset : 0;
	hit->session = skb ? 0 : task_session_nr_ns(current, &init_pid_ns);
	if (captured && offset + (int)captured <= (int)skb_headlen(skb)) /* as most are; skb_copy_bits() is slower */
		memcpy(hit + 1, skb->data + offset, captured);
	else if (captured && skb_copy_bits(skb, offset, hit + 1, captured))
		memset(hit + 1, 0, captured);
	if (stack)
		memcpy((char *)(hit + 1) + ALIGN(captured, 8), words, stack);
	agent_event_end(hit);
	return true;
}

/* A packet is held no more, or all of a rule's (AGENT_ALL); quietly: nobody waits to hear that. Interrupts are off. */
void agent_tell_end(u16 kind, u16 rule, u64 packet, u32 cause, bool quietly)
{
	struct agent_end *end = agent_event_begin(kind, rule, sizeof(*end));

	if (!end)
		return;
	end->at_ns = agent_now_ns();
	end->packet = packet;
	end->cause = cause;
	end->padding = 0;
	if (quietly)
		agent_event_end_quietly(end);
	else
		agent_event_end(end);
}

/* Of the command that is being carried out: what its answer says beside a number. */
static char note[AGENT_NOTE_BYTES];

void agent_note(const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	vscnprintf(note, sizeof(note), format, arguments);
	va_end(arguments);
}

/* The answer to a command; cookie 0: nobody waits for it. */
void agent_answer(u64 cookie, long result)
{
	struct agent_done *done;
	unsigned long flags;

	local_irq_save(flags);
	done = cookie ? agent_event_begin(AGENT_DONE, 0, sizeof(*done)) : NULL;
	if (done) {
		done->cookie = cookie;
		done->result = result;
		memcpy(done->note, note, sizeof(note));
		agent_event_end(done);
	}
	memset(note, 0, sizeof(note));
	local_irq_restore(flags);
}
