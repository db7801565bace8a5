/* SPDX-License-Identifier: GPL-2.0-only */
/* References that a held packet needs. keep.c says which, and why. */
#ifndef SKBLAB_KEEP_H
#define SKBLAB_KEEP_H

#include "agent.h"

#define AGENT_KEPT 4 /* devices, sockets, namespaces of one packet: skb->dev and the function's arguments */

struct agent_kept { /* each list ends at its first NULL */
	struct net_device *devices[AGENT_KEPT]; /* references */
	struct sock *sockets[AGENT_KEPT]; /* references */
	struct net *nets[AGENT_KEPT]; /* no references: a namespace that goes takes its held packets with it */
	bool by_packet; /* an argument's socket is closed, and is freed with the packet */
};

bool agent_keep(struct agent_kept *kept, const struct agent_arm *arm, const unsigned long *arguments,
		struct sk_buff *skb);
void agent_keep_again(const struct agent_kept *kept);
void agent_unkeep(struct agent_kept *kept);
void agent_check_owner(struct sk_buff *skb);
bool agent_keeps(const struct agent_kept *kept, const void *object);

#endif
