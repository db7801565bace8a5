// SPDX-License-Identifier: GPL-2.0-only
/* Write a packet's bytes back, from its network header on: as many as before, fewer, or more. */
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "packet.h"

/* Where the network header ends, options and extension headers with it; 0 where that cannot be said. */
static int headers_end(const struct sk_buff *skb)
{
	const u8 *bytes = skb->data; /* the network header, and all that is behind it */
	__be16 fragment;
	u8 next;

	if (skb->protocol == htons(ETH_P_IP) && skb->len >= sizeof(struct iphdr))
		return (bytes[0] & 0xf) * 4;
	if (skb->protocol != htons(ETH_P_IPV6) || skb->len < sizeof(struct ipv6hdr))
		return 0;
	next = ((const struct ipv6hdr *)bytes)->nexthdr;
	return max(ipv6_skip_exthdr(skb, sizeof(struct ipv6hdr), &next, &fragment), 0);
}

/*
 * What the kernel noted down of options that are gone (net/ipv4/ip_input.c ip_rcv_options(), net/ipv6/exthdrs.c). Where it
 * has not come to that yet, the control block is nobody's.
 */
static void forget_options(struct sk_buff *skb, int end)
{
	if (skb->protocol == htons(ETH_P_IP) && end == sizeof(struct iphdr)) {
		memset(&IPCB(skb)->opt, 0, sizeof(IPCB(skb)->opt));
	} else if (skb->protocol == htons(ETH_P_IPV6) && end == sizeof(struct ipv6hdr)) {
		struct inet6_skb_parm *noted = IP6CB(skb);

		noted->ra = 0;
		noted->dst0 = noted->dst1 = noted->srcrt = noted->lastopt = noted->srhoff = 0;
		noted->nhoff = offsetof(struct ipv6hdr, nexthdr);
		noted->flags &= ~(IP6SKB_ROUTERALERT | IP6SKB_HOPBYHOP);
	}
}

/* Why a packet cannot be written to, whatever the bytes; or 0. */
static int refusal(const struct sk_buff *skb, const struct agent_decide *decide, int before)
{
	const struct net_device *device = agent_device_of(skb);
	const int grows = (int)decide->data_bytes - ((int)skb->len - before);

	if (skb_is_gso(skb)) {
		agent_note("%u bytes, to be sent in segments of %u", skb->len - before, skb_shinfo(skb)->gso_size);
		return -EOPNOTSUPP;
	}
	if (skb_shared(skb))
		return -EBUSY;
	if (decide->number > (int)decide->data_bytes || (decide->number < 0 && -decide->number > (int)skb_headroom(skb) + before))
		return -EINVAL;
	if (decide->after_ns && grows > 0 && device && decide->data_bytes > device->mtu) {
		agent_note("%u bytes; the MTU of %s is %u", decide->data_bytes, device->name, device->mtu);
		return -EMSGSIZE;
	}
	return 0;
}

int agent_write(struct sk_buff *skb, const struct agent_decide *decide)
{
	const int before = agent_network_offset(skb);
	const u32 bytes = decide->data_bytes;
	const int data_offset = decide->number;
	int transport = skb_transport_header_was_set(skb) ? skb_transport_offset(skb) - before : -1;
	int error = refusal(skb, decide, before);
	int more, old_end, end;

	if (error)
		return error;
	/* From here on skb->data is the network header, and everything is in one piece that is ours. */
	skb->data += before;
	skb->len -= before;
	more = (int)bytes - (int)skb->len;
	error = skb_linearize(skb);
	if (!error && (skb_cloned(skb) || more > skb_tailroom(skb)))
		error = pskb_expand_head(skb, 0, max(more, 0), GFP_ATOMIC);
	if (error) {
		skb->data -= before;
		skb->len += before;
		return error;
	}
	old_end = headers_end(skb);
	if (more > 0)
		skb_put(skb, more);
	else
		skb_trim(skb, bytes);
	memcpy(skb->data, decide + 1, bytes);
	skb_reset_network_header(skb);
	end = headers_end(skb);
	if (end != old_end)
		forget_options(skb, end);
	if (data_offset > 0)
		transport = data_offset;
	else if (old_end && end && transport > 0)
		transport = transport >= old_end ? transport + end - old_end : min(transport, end);
	if (transport >= 0)
		skb_set_transport_header(skb, min_t(int, transport, bytes));
	/* The host has computed the checksums; a receiver is to check them, a sender is to leave them. */
	skb->ip_summed = CHECKSUM_NONE;
	skb->csum_valid = 0;
	skb->csum_complete_sw = 0;
	skb->csum_level = 0;
	skb->remcsum_offload = 0;
	skb->encapsulation = 0; /* where the inner headers lay, other bytes may be now */
	skb_clear_hash(skb);
	skb->data += data_offset;
	skb->len -= data_offset;
	return 0;
}
