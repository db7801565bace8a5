// SPDX-License-Identifier: GPL-2.0-only
/* Write a packet's bytes back, from its network header on: as many as before, fewer, or more. */
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <net/ip.h>
#include <net/ipv6.h>

#include "packet.h"

/* Where the network header ends, with its options and extension headers; 0: unknown. */
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
 * Clear what the kernel has parsed of options that the edit has removed (net/ipv4/ip_input.c ip_rcv_options(),
 * net/ipv6/exthdrs.c). Before it has parsed them the control block is unused.
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

/* The error for a packet that cannot be written, or 0. */
static int refusal(const struct sk_buff *skb, const struct agent_write *write, int before)
{
	const struct net_device *device = agent_device_of(skb);
	const int grows = (int)write->data_bytes - ((int)skb->len - before);

	if (skb_shared(skb))
		return -EBUSY;
	if (write->data_offset > (int)write->data_bytes ||
	    (write->data_offset < 0 && -write->data_offset > (int)skb_headroom(skb) + before))
		return -EINVAL;
	if (write->checksum_offset && write->checksum_start + write->checksum_offset + 2u > write->data_bytes)
		return -EINVAL;
	if (write->flags & AGENT_WITHIN_MTU && grows > 0 && device && write->data_bytes > device->mtu) {
		agent_note("%u bytes; the MTU of %s is %u", write->data_bytes, device->name, device->mtu);
		return -EMSGSIZE;
	}
	return 0;
}

/*
 * Can a GSO packet be cut into segments as before? net/core/skbuff.c skb_segment() copies the headers, so their fields may
 * change, and their lengths may not. skb->data is the network header, and the packet is linear.
 */
static bool same_segments(const struct sk_buff *skb, const struct agent_write *write)
{
	const u8 *old = skb->data, *new = (const u8 *)(write + 1);
	const u32 transport = write->checksum_start;
	const u32 type = skb_shinfo(skb)->gso_type;

	if (skb->encapsulation || type & SKB_GSO_FRAGLIST || write->data_bytes != skb->len || !write->checksum_offset ||
	    skb->ip_summed != CHECKSUM_PARTIAL || transport + sizeof(struct tcphdr) > skb->len ||
	    (int)transport != headers_end(skb))
		return false;
	if (skb->protocol == htons(ETH_P_IP)) {
		const struct iphdr *was = (const void *)old, *is = (const void *)new;

		if (old[0] != new[0] || was->tot_len != is->tot_len || was->protocol != is->protocol || ip_is_fragment(is))
			return false;
	} else if (memcmp(old + offsetof(struct ipv6hdr, payload_len), new + offsetof(struct ipv6hdr, payload_len), 3) ||
		   memcmp(old + sizeof(struct ipv6hdr), new + sizeof(struct ipv6hdr), transport - sizeof(struct ipv6hdr))) {
		return false;
	}
	old += transport;
	new += transport;
	if (type & (SKB_GSO_TCPV4 | SKB_GSO_TCPV6))
		return ((const struct tcphdr *)old)->doff == ((const struct tcphdr *)new)->doff;
	return type & SKB_GSO_UDP_L4 && ((const struct udphdr *)old)->len == ((const struct udphdr *)new)->len;
}

/* Set the checksum state. The host has updated the checksums that were right, and left those alone that were wrong. */
static void note_checksums(struct sk_buff *skb, const struct agent_write *write)
{
	if (write->checksum_offset) {
		skb->ip_summed = CHECKSUM_PARTIAL;
		skb->csum_start = skb_headroom(skb) + write->checksum_start;
		skb->csum_offset = write->checksum_offset;
	} else if (write->flags & AGENT_DISTRUST || skb->ip_summed == CHECKSUM_PARTIAL || skb->ip_summed == CHECKSUM_COMPLETE) {
		skb->ip_summed = CHECKSUM_NONE;
		skb->csum_valid = 0;
		skb->csum_complete_sw = 0;
		skb->csum_level = 0;
	}
}

int agent_write(struct sk_buff *skb, const struct agent_write *write)
{
	const int before = agent_network_offset(skb);
	const u32 bytes = write->data_bytes;
	const int data_offset = write->data_offset;
	int transport = skb_transport_header_was_set(skb) ? skb_transport_offset(skb) - before : -1;
	int error = refusal(skb, write, before);
	int more, old_end, end;

	if (error)
		return error;
	/* From here on skb->data is the network header. The packet is made linear, and its bytes our own. */
	skb->data += before;
	skb->len -= before;
	more = (int)bytes - (int)skb->len;
	error = skb_linearize(skb);
	if (!error && skb_is_gso(skb) && !same_segments(skb, write)) {
		agent_note("%u bytes, to be sent in segments of %u", skb->len, skb_shinfo(skb)->gso_size);
		error = -EOPNOTSUPP;
	}
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
	memcpy(skb->data, write + 1, bytes);
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
	note_checksums(skb, write);
	if (more || end != old_end) { /* the inner headers' offsets are wrong now */
		skb->encapsulation = 0;
		skb->remcsum_offload = 0;
	}
	skb_clear_hash(skb);
	skb->data += data_offset;
	skb->len -= data_offset;
	return 0;
}
