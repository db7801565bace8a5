/* SPDX-License-Identifier: GPL-2.0-only */
/* What can be read of a packet, at any function: is it whole, where is its network header, is its device one? */
#ifndef SKBLAB_PACKET_H
#define SKBLAB_PACKET_H

#include <linux/mm.h>

#include "agent.h"

extern const struct net_device *agent_recent_device;
const struct net_device *agent_device_find(const struct net_device *device);

int agent_devices_begin(void);
void agent_devices_end(void);
void agent_fields_copy(const struct sk_buff *skb, u8 *to);

/* Are an sk_buff and its linear bytes where memory is? A netlink message's bytes may be vmalloc()'s, and are left alone. */
static __always_inline bool agent_is_packet(const struct sk_buff *skb)
{
	unsigned int headroom;

	if (!virt_addr_valid(skb) || !virt_addr_valid(skb + 1) || !virt_addr_valid(skb->head))
		return false;
	headroom = skb->data - skb->head;
	return headroom <= skb_end_offset(skb) && skb_headlen(skb) <= skb_end_offset(skb) - headroom &&
	       virt_addr_valid(skb->head + skb_end_offset(skb));
}

/* Where the network header is, counted from skb->data; before it is known, skb->data is taken for it. */
static __always_inline int agent_network_offset(const struct sk_buff *skb)
{
	const unsigned int headroom = skb->data - skb->head;

	if (!skb->network_header || skb->network_header > headroom + skb_headlen(skb))
		return 0;
	return (int)skb->network_header - (int)headroom;
}

/*
 * The packet's device, or NULL. On a queue its place is another's: UDP's dev_scratch (net/ipv4/udp.c
 * udp_set_dev_scratch()), or a node of the tree of TCP, netem or reassembly (include/linux/skbuff.h struct sk_buff).
 */
static __always_inline const struct net_device *agent_device_of(const struct sk_buff *skb)
{
	const struct net_device *device = skb->dev;

	return likely(device == agent_recent_device) ? device : agent_device_find(device);
}

#endif
