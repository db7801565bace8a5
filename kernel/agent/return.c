// SPDX-License-Identifier: GPL-2.0-only
/* A traced function returns: what the host learns of it, and what it means for the packet. Interrupts are off. */
#include "calls.h"
#include "clock.h"
#include "follow.h"
#include "packet.h"
#include "ring.h"

static void write_kin(const struct agent_call *call, u32 role, u32 packet, u32 other, const struct sk_buff *skb)
{
	struct agent_kin *kin = agent_step_begin(AGENT_KIN, call->probe->number, sizeof(*kin));

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

/* A packet was allocated in a call that a followed packet caused. */
static void born(const struct agent_call *call, const struct sk_buff *skb)
{
	struct agent_followed *packet;

	if (!call->packet || !agent_is_packet(skb) || agent_followed(skb))
		return;
	packet = agent_follow_new(skb);
	packet->is_new = true;
	write_kin(call, AGENT_BORN, packet->number, call->packet, skb);
}

static void copied(const struct agent_call *call, const struct sk_buff *copy)
{
	for (; agent_is_packet(copy); copy = copy->next) {
		struct agent_followed *packet = agent_followed(copy);

		if (packet && !packet->is_new)
			continue; /* the packet itself, or a clone */
		if (!packet)
			packet = agent_follow_new(copy);
		packet->is_new = false;
		write_kin(call, AGENT_COPIED, packet->number, call->packet, copy);
	}
}

/* pskb_expand_head() (net/core/skbuff.c) frees the old bytes unless a clone has them. */
static void moved(const struct agent_call *call)
{
	if ((u64)call->skb->head != call->head)
		agent_follow_moved(call->skb, call->packet, call->head, call->shared);
}

static noinline void apply_role(const struct agent_call *call, unsigned long value)
{
	switch (call->probe->tracing.role) {
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
			write_kin(call, AGENT_MERGED, call->packet, call->other, call->skb);
		break;
	case AGENT_COALESCED:
		if (!(u8)value)
			break;
		if (call->other)
			write_kin(call, AGENT_MERGED, call->packet, call->other, call->skb);
		agent_forget(call->head); /* its bytes are the other packet's now */
		break;
	default:
		break;
	}
}

static __always_inline void write_return(const struct agent_call *call, unsigned long value)
{
	struct agent_return *it = agent_step_begin(AGENT_RETURNED, call->probe->number, sizeof(*it));
	u64 took_ns;

	if (!it)
		return;
	took_ns = agent_now_ns() - call->at_ns;
	it->value = value;
	it->call = call->number;
	it->took = took_ns < 1u << 31 ? took_ns : 1u << 31 | min_t(u64, took_ns / AGENT_LONG_NS, (1u << 31) - 1);
	agent_step_end(it);
}

/* agent_return (trampoline.S) calls this with regs->ip in the place of the return address. Returns that address. */
unsigned long agent_returned(struct agent_regs *regs)
{
	const struct agent_call *call;
	unsigned long flags, caller;

	local_irq_save(flags);
	call = agent_call_end(&regs->ip);
	caller = call->caller;
	if (call->probe->tracing.role != AGENT_PASSED)
		apply_role(call, regs->rax);
	if (call->probe->tracing.returns)
		write_return(call, regs->rax);
	local_irq_restore(flags);
	return caller;
}

/* The function that agent_resume() called has returned; *slot stands for its return address. */
void agent_resumed(const unsigned long *slot, unsigned long value)
{
	const struct agent_call *call = agent_call_end(slot);

	if (call->probe->tracing.returns)
		write_return(call, value);
}
