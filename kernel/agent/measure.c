// SPDX-License-Identifier: GPL-2.0-only
/* What a probe costs: a packet goes round and round through a function that does nothing, and no network is around it. */
#include <linux/etherdevice.h>
#include <linux/ktime.h>

#include "agent.h"

__attribute__((patchable_function_entry(AGENT_ENTRY_BYTES))) noinline void agent_measured(struct sk_buff *skb)
{
	asm volatile("" : : "r"(skb) : "memory");
}

#define UNDISTURBED_CALLS 1000 /* with interrupts off */

/* Call it so many times with a packet, the command's Ethernet frame; return how long that took, in ns. */
long agent_measure(const struct agent_decide *decide)
{
	struct sk_buff *skb = alloc_skb(decide->data_bytes, GFP_ATOMIC);
	unsigned long flags;
	u64 took_ns = 0;

	if (decide->data_bytes < ETH_HLEN || sizeof(*decide) + decide->data_bytes > decide->record.bytes) {
		kfree_skb(skb);
		return -EINVAL;
	}
	if (!skb)
		return -ENOMEM;
	skb_put_data(skb, decide + 1, decide->data_bytes);
	skb->protocol = eth_type_trans(skb, init_net.loopback_dev);
	skb_reset_network_header(skb);
	for (s32 left = decide->number; left > 0; left -= UNDISTURBED_CALLS) {
		u64 begin_ns;

		local_irq_save(flags);
		begin_ns = ktime_get_ns();
		for (s32 calls = min(left, UNDISTURBED_CALLS); calls; calls--)
			agent_measured(skb);
		took_ns += ktime_get_ns() - begin_ns;
		local_irq_restore(flags);
	}
	kfree_skb(skb);
	return took_ns;
}
