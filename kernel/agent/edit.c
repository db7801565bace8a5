// SPDX-License-Identifier: GPL-2.0-only
/* Write a packet's bytes back, from its network header on: as many as before, fewer, or more. */
#include "agent.h"

int agent_write(struct sk_buff *skb, const void *data, u32 bytes, int data_offset)
{
	int before = agent_network_offset(skb);
	int transport = skb_transport_header_was_set(skb) ? skb_transport_header(skb) - skb_network_header(skb) : -1;
	int more, error;

	if (data_offset > (int)bytes || skb_shared(skb) || skb_is_gso(skb))
		return -EINVAL;
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
	if (more > 0)
		skb_put(skb, more);
	else
		skb_trim(skb, bytes);
	memcpy(skb->data, data, bytes);
	skb_reset_network_header(skb);
	if (data_offset > 0)
		skb_set_transport_header(skb, data_offset);
	else if (transport >= 0)
		skb_set_transport_header(skb, transport);
	/* The host has computed the checksums; a receiver is to check them, a sender is to leave them. */
	skb->ip_summed = CHECKSUM_NONE;
	skb->csum_valid = 0;
	skb->csum_complete_sw = 0;
	skb_clear_hash(skb);
	skb->data += data_offset;
	skb->len -= data_offset;
	return 0;
}
