/* SPDX-License-Identifier: GPL-2.0-only */
/* What can be read of a packet at any function: whether it is valid, its network header, its device. */
#ifndef SKBLAB_PACKET_H
#define SKBLAB_PACKET_H

#include <linux/mm.h>

#include "agent.h"

extern const struct net_device *agent_recent_device;
const struct net_device *agent_device_find(const struct net_device *device);

int agent_devices_begin(void);
void agent_devices_end(void);
bool agent_field_copy(const struct sk_buff *skb, const struct agent_field *field, u8 *to);
void agent_fields_copy(const struct sk_buff *skb, u8 *to);

/* Are an sk_buff and its linear bytes in mapped memory? A netlink message in vmalloc()'s memory is not looked at. */
static __always_inline bool agent_is_packet(const struct sk_buff *skb)
{
	unsigned int headroom;

	if (!virt_addr_valid(skb) || !virt_addr_valid(skb + 1) || !virt_addr_valid(skb->head))
		return false;
	headroom = skb->data - skb->head;
	return headroom <= skb_end_offset(skb) && skb_headlen(skb) <= skb_end_offset(skb) - headroom &&
	       virt_addr_valid(skb->head + skb_end_offset(skb));
}

/* The network header's offset from skb->data; 0 before it is set. */
static __always_inline int agent_network_offset(const struct sk_buff *skb)
{
	const unsigned int headroom = skb->data - skb->head;

	if (!skb->network_header || skb->network_header > headroom + skb_headlen(skb))
		return 0;
	return (int)skb->network_header - (int)headroom;
}

/*
 * The packet's device, or NULL. On a queue skb->dev shares its place with other members: UDP's dev_scratch (net/ipv4/udp.c
 * udp_set_dev_scratch()), or the rbnode of TCP, netem and reassembly (include/linux/skbuff.h struct sk_buff).
 */
static __always_inline const struct net_device *agent_device_of(const struct sk_buff *skb)
{
	const struct net_device *device = skb->dev;

	return likely(device == agent_recent_device) ? device : agent_device_find(device);
}

#endif
