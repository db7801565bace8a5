// SPDX-License-Identifier: GPL-2.0-only
/* A function is passed by a packet that is followed, and returns: what is told of it, and what it means for the packet. */
#include <linux/hash.h>

#include "calls.h"
#include "clock.h"
#include "follow.h"
#include "packet.h"
#include "probe.h"
#include "ring.h"

static bool needs_return(const struct agent_part *part)
{
	switch (part->role) {
	case AGENT_BORN:
	case AGENT_COPIED:
	case AGENT_MOVED:
	case AGENT_MERGED:
	case AGENT_COALESCED:
	case AGENT_BOUNDARY:
		return true;
	default:
		return part->returns;
	}
}

/* Has nobody else this packet's bytes? (net/core/skbuff.c skb_release_data(), include/linux/skbuff.h skb_data_unref()) */
static bool is_last(const struct sk_buff *skb)
{
	return !skb->cloned ||
	       atomic_read(&skb_shinfo(skb)->dataref) == (skb->nohdr ? (1 << SKB_DATAREF_SHIFT) + 1 : 1);
}

static u32 number_of(const struct sk_buff *skb)
{
	struct agent_followed *packet = agent_is_packet(skb) ? agent_followed(skb) : NULL;

	return packet ? packet->number : 0;
}

static void tell_kin(const struct agent_call *call, u32 role, u32 packet, u32 other, const struct sk_buff *skb)
{
	struct agent_kin *kin = agent_step_begin(AGENT_KIN, call->passage->point, sizeof(*kin));

	if (!kin)
		return;
	kin->at_ns = agent_now_ns();
	kin->skb = (u64)skb;
	kin->packet = packet;
	kin->other = other;
	kin->call = call->number;
	kin->role = role;
	agent_step_end(kin);
}

static void born(const struct agent_call *call, const struct sk_buff *skb)
{
	struct agent_followed *packet;

	if (!call->packet || !agent_is_packet(skb) || agent_followed(skb))
		return;
	packet = agent_follow_as(skb, 0);
	packet->is_new = true;
	tell_kin(call, AGENT_BORN, packet->number, call->packet, skb);
}

static void copied(const struct agent_call *call, const struct sk_buff *copy)
{
	for (; agent_is_packet(copy); copy = copy->next) {
		struct agent_followed *packet = agent_followed(copy);

		if (packet && !packet->is_new)
			continue; /* the packet itself, or a clone */
		if (!packet)
			packet = agent_follow_as(copy, 0);
		packet->is_new = false;
		tell_kin(call, AGENT_COPIED, packet->number, call->packet, copy);
	}
}

/* The old bytes are free unless a clone has them (net/core/skbuff.c pskb_expand_head()). */
static void moved(const struct agent_call *call)
{
	if ((u64)call->skb->head == call->head)
		return;
	if (!call->shared)
		agent_forget(call->head);
	agent_follow_as(call->skb, call->packet);
}

static noinline void take_note(const struct agent_call *call, unsigned long value)
{
	const struct agent_part *part = &call->passage->part;

	switch (part->role) {
	case AGENT_BORN:
		born(call, (const struct sk_buff *)value);
		break;
	case AGENT_COPIED:
		copied(call, (const struct sk_buff *)value);
		break;
	case AGENT_MOVED:
		moved(call);
		break;
	case AGENT_MERGED:
		if (!(u32)value && call->other)
			tell_kin(call, AGENT_MERGED, call->packet, call->other, call->skb);
		break;
	case AGENT_COALESCED:
		if (!(u8)value)
			break;
		if (call->other)
			tell_kin(call, AGENT_MERGED, call->packet, call->other, call->skb);
		agent_forget(call->head); /* its bytes are the other's now */
		break;
	default:
		break;
	}
}

static __always_inline void tell_return(const struct agent_call *call, unsigned long value)
{
	struct agent_return *it = agent_step_begin(AGENT_RETURN, call->passage->point, sizeof(*it));
	u64 took_ns;

	if (!it)
		return;
	took_ns = agent_now_ns() - call->at_ns;
	it->value = value;
	it->call = call->number;
	it->took = took_ns < 1u << 31 ? took_ns : 1u << 31 | min_t(u64, took_ns / AGENT_LONG_NS, (1u << 31) - 1);
	agent_step_end(it);
}

/* agent_return calls this where a function has returned to it; regs->ip is where the return address was. */
unsigned long agent_returned(struct agent_regs *regs)
{
	const struct agent_call *call;
	unsigned long flags, caller;

	local_irq_save(flags);
	call = agent_call_end(&regs->ip);
	caller = call->caller;
	if (call->passage->part.role != AGENT_PASSED)
		take_note(call, regs->rax);
	if (call->passage->part.returns)
		tell_return(call, regs->rax);
	local_irq_restore(flags);
	return caller;
}

/* Are these the bytes that were seen last? memcmp() may use registers that a caller of the probed function counts on. */
static bool is_as_seen(const struct agent_followed *packet, const u8 *bytes, u32 count)
{
	const u8 *seen = (const u8 *)packet->seen;
	u32 i = 0;

	if (packet->captured_bytes != count)
		return false;
	for (; i + sizeof(u64) <= count; i += sizeof(u64))
		if (get_unaligned((const u64 *)(bytes + i)) != get_unaligned((const u64 *)(seen + i)))
			return false;
	for (; i < count; i++)
		if (bytes[i] != seen[i])
			return false;
	return true;
}

/* Tell what the device of an index is called from now on: each network namespace has one of that index. */
static noinline void tell_device(const struct net_device *device)
{
	struct agent_device *it = agent_step_begin(AGENT_DEVICE, 0, sizeof(*it));

	if (!it)
		return;
	agent_devices_told[device->ifindex % AGENT_TOLD] = device;
	it->device = device->ifindex;
	it->padding = 0;
	memcpy(it->name, device->name, sizeof(it->name));
	agent_step_end(it);
}

/*
 * Is where a packet is let go for no reason known already? A kernel without tracepoints says that of every packet that is
 * consumed, too (include/linux/skbuff.h consume_skb()): for each place the host is told once who called.
 */
static bool is_known_place(unsigned long caller)
{
	static unsigned long known[256];
	unsigned long *place = &known[hash_long(caller, 8)];

	if (*place == (caller ^ agent_following.cookie))
		return true;
	*place = caller ^ agent_following.cookie; /* of another trace, it is not known in this one */
	return false;
}

/* Why a function lets its packet go: the stack's words where that is a drop of which is to be told, or none. */
static noinline u32 look_at_end(const struct agent_part *part, const struct agent_regs *regs, unsigned long caller,
				u32 reason, const u64 **words)
{
	if (reason == part->no_drop || (reason == part->no_reason && is_known_place(caller)))
		return 0;
	return agent_stack(agent_following.text_start, agent_following.text_end, regs, words);
}

/* Tell of a step; regs is NULL for a packet that was held, and goes on. Returns when it was. */
static __always_inline u64 tell_step(const struct agent_passage *passage, const struct agent_regs *regs,
				     const struct sk_buff *skb, struct agent_followed *packet, unsigned long caller,
				     u32 call, u32 outer, u8 flags)
{
	const struct agent_part *part = &passage->part;
	const bool lets_go = regs && part->role == AGENT_DROPS;
	const u32 reason = lets_go ? agent_argument(regs, part->argument) : 0;
	const u64 *words = NULL;
	const u32 stack = lets_go ? look_at_end(part, regs, caller, reason, &words) : 0;
	const int offset = skb ? agent_network_offset(skb) : 0;
	const u8 *bytes = skb ? skb->data + offset : NULL;
	const u32 seen = skb ? clamp_t(int, (int)skb_headlen(skb) - offset, 0, AGENT_SEEN_BYTES) : 0;
	const bool changed = skb && !is_as_seen(packet, bytes, seen);
	const u32 captured = changed ? seen : 0;
	const u32 fields = skb ? ALIGN(agent_following_bytes, 8) : 0;
	const bool more = skb && (skb->mark || skb->hash || lets_go);
	const struct net_device *device = skb ? agent_device_of(skb) : NULL;
	const u64 now_ns = agent_now_ns();
	struct agent_step *step;
	u8 *end;

	if (device && unlikely(agent_devices_told[device->ifindex % AGENT_TOLD] != device))
		tell_device(device);
	step = agent_step_begin(AGENT_STEP, passage->point,
				sizeof(*step) + (more ? sizeof(struct agent_more) : 0) + ALIGN(captured, 8) + fields +
					stack * sizeof(u64));
	if (!step)
		return now_ns;
	step->at_ns = now_ns;
	step->packet = packet ? packet->number : 0;
	step->call = call;
	step->outer = outer;
	step->length = skb ? skb->len : 0;
	step->skb = (u64)skb;
	step->caller = caller;
	step->data_offset = -offset;
	step->protocol = skb ? ntohs(skb->protocol) : 0;
	step->device = device ? device->ifindex : 0;
	step->captured_bytes = captured;
	step->flags = flags | (skb && skb_cloned(skb) ? AGENT_SHARED_HEAD : 0) | (more ? AGENT_MORE : 0) |
		      (lets_go ? AGENT_LET_GO : 0) | (changed ? AGENT_CHANGED : 0);
	end = (u8 *)(step + 1);
	if (more) {
		*(struct agent_more *)end = (struct agent_more){ .mark = skb->mark, .hash = skb->hash, .reason = reason };
		end += sizeof(struct agent_more);
	}
	if (unlikely(changed)) {
		memcpy(end, bytes, captured);
		memcpy(packet->seen, bytes, captured);
		packet->captured_bytes = captured;
		end += ALIGN(captured, 8);
	}
	if (unlikely(fields))
		agent_fields_copy(skb, end);
	if (unlikely(stack))
		memcpy(end + fields, words, stack * sizeof(u64));
	agent_step_end(step);
	return now_ns;
}

/* The packet is there, or none is needed, and the function is passed. Returns whether its return is waited for. */
static bool pass(const struct agent_passage *passage, struct agent_regs *regs, struct sk_buff *skb, bool may_wait)
{
	const struct agent_part *part = &passage->part;
	struct agent_followed *packet = NULL;
	struct agent_calls *calls = agent_calls_on(&regs->caller);
	const struct agent_call *around = agent_call_around(calls, &regs->caller);
	const u32 outer = around ? around->number : 0, because = around ? around->packet : 0;
	const unsigned long caller = agent_call_caller((unsigned long)&regs->caller);
	struct agent_call *call = NULL;
	u8 flags = 0;
	u64 at_ns;

	if (part->skb_argument != AGENT_NO_PACKET) {
		packet = agent_is_packet(skb) ? agent_meet(skb) : NULL;
		if (!packet)
			return false;
	} else if (!because) {
		return false;
	}
	if (may_wait && needs_return(part))
		call = agent_call_begin(calls, &regs->caller);
	if (call) {
		call->passage = passage;
		call->skb = skb;
		call->head = skb ? (u64)skb->head : 0;
		call->shared = skb && skb_cloned(skb);
		call->packet = packet ? packet->number : because;
		if (part->role == AGENT_BOUNDARY)
			call->packet = 0;
		else if (!part->step)
			call->number = outer; /* nobody is told of this call: what happens in it happens in that one */
		call->other = 0;
		if (part->role == AGENT_MERGED || part->role == AGENT_COALESCED)
			call->other = number_of((const struct sk_buff *)agent_argument(regs, part->argument));
	}
	if (part->role == AGENT_ENDS && is_last(skb))
		flags = AGENT_FREED;
	if (part->step) {
		at_ns = tell_step(passage, regs, skb, packet, caller, call ? call->number : agent_call_number(), outer,
				  flags);
		if (call)
			call->at_ns = at_ns;
	}
	if (flags & AGENT_FREED)
		agent_forget((u64)skb->head);
	return call;
}

/* A point is passed. Interrupts are off. Of a list, the call is its first packet's. */
void agent_passed(const struct agent_passage *passage, struct agent_regs *regs)
{
	const struct agent_part *part = &passage->part;
	const unsigned long argument =
		part->skb_argument != AGENT_NO_PACKET ? agent_argument(regs, part->skb_argument) : 0;
	const struct list_head *list = (const struct list_head *)argument;
	bool waits = false;

	if (part->given == AGENT_BY_POINTER)
		pass(passage, regs, virt_addr_valid(argument) ? *(struct sk_buff **)argument : NULL, true);
	else if (part->given == AGENT_IN_LIST)
		for (const struct list_head *at = list->next; at != list; at = at->next)
			waits |= pass(passage, regs, list_entry((void *)at, struct sk_buff, list), !waits);
	else
		pass(passage, regs, (struct sk_buff *)argument, true);
}

/*
 * Call a function for a packet that was held there. For those that are followed it is passed a second time; that is no call
 * of its caller's, so the place of its return address is ours.
 */
void agent_resume(unsigned long address, const unsigned long *arguments, struct sk_buff *skb)
{
	const struct agent_probe *probe;
	struct agent_followed *packet = NULL;
	const struct agent_call *ended;
	struct agent_call *call = NULL;
	unsigned long place = 0, flags;
	long value;

	local_irq_save(flags);
	probe = agent_probe_find(address);
	if (probe && probe->passage.in_force)
		packet = agent_followed(skb);
	if (packet) {
		struct agent_calls *calls = agent_calls_on(&place);

		agent_call_around(calls, &place);
		call = agent_call_begin(calls, &place);
	}
	if (call) {
		call->passage = &probe->passage;
		call->packet = packet->number;
		call->other = 0;
		call->at_ns = tell_step(&probe->passage, NULL, skb, packet, 0, call->number, 0, AGENT_RESUMED);
	}
	local_irq_restore(flags);
	value = agent_call(address, arguments);
	if (!call)
		return;
	local_irq_save(flags);
	if (place == (unsigned long)agent_return) { /* the trace has not ended meanwhile */
		ended = agent_call_end(&place);
		if (ended->passage->part.returns)
			tell_return(ended, value);
	}
	local_irq_restore(flags);
}
