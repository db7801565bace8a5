// SPDX-License-Identifier: GPL-2.0-only
/*
 * Call a function that takes over its packet again: with the packet that was held there, or with a copy. What its caller does
 * before such a call, and with the return value, is done here.
 */
#include "agent.h"

struct agent_again agent_again_by(u16 rule, const struct agent_arm *arm)
{
	return (struct agent_again){
		.taken_from = arm->taken_from,
		.taken_to = arm->taken_to,
		.rule = rule,
		.transmits = arm->transmits,
	};
}

/* A driver is called only while its device is up and its queue has room: net/core/dev.c __dev_direct_xmit(). */
static bool takes(struct net_device *device, const struct sk_buff *skb)
{
	return netif_running(device) && !netif_xmit_frozen_or_drv_stopped(skb_get_tx_queue(device, skb));
}

/* Can the function be called now with the packet of which copies were made? Else its caller keeps it, for later. */
bool agent_may_go_on(const struct agent_again *again, const unsigned long *arguments, const struct sk_buff *skb)
{
	return !again->transmits || takes((struct net_device *)arguments[1], skb);
}

/* A copy's caller has the lock of the driver's queue: it is about to send the original. */
static long transmit(unsigned long address, const unsigned long *arguments, struct sk_buff *skb, u32 flags)
{
	struct net_device *device = (struct net_device *)arguments[1];
	struct netdev_queue *queue = skb_get_tx_queue(device, skb);
	const bool is_copy = !(flags & AGENT_RESUMED);
	long value = NETDEV_TX_BUSY;

	if (!is_copy)
		HARD_TX_LOCK(device, queue, smp_processor_id());
	if (takes(device, skb))
		value = agent_resume(address, arguments, skb, flags);
	if (value == NETDEV_TX_OK)
		txq_trans_cond_update(queue); /* or the watchdog believes that this queue has not sent for long */
	if (!is_copy)
		HARD_TX_UNLOCK(device, queue);
	return value;
}

/* flags: of the step that a followed packet makes of it. Bottom halves are off, in an RCU section. */
void agent_call_again(const struct agent_again *again, unsigned long address, const unsigned long *arguments,
		      struct sk_buff *skb, u32 flags)
{
	const long value = again->transmits ? transmit(address, arguments, skb, flags) :
					      agent_resume(address, arguments, skb, flags);

	if (value >= again->taken_from && value <= again->taken_to)
		return;
	agent_counts(again->rule)->handed_back++;
	kfree_skb(skb);
}
