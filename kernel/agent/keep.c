// SPDX-License-Identifier: GPL-2.0-only
/*
 * References that a packet needs while it is held, beside those that it has: to its route, its socket, its devices, and to
 * what its function's arguments point to. struct agent_kept lists the references that were taken, for agent_unkeep().
 *
 * A network namespace gets no reference: `ip netns del` would succeed and remove nothing. A device's reference makes
 * `ip link del` wait. So held.c drops the held packets of a device or a namespace that goes.
 */
#include <linux/version.h>
#include <net/dst.h>
#include <net/inet_sock.h>
#include <net/net_namespace.h>
#include <net/netfilter/nf_conntrack.h>
#include <net/sock.h>
#include <net/tcp_states.h>

#include "keep.h"
#include "packet.h"

/* Add an object to a list once; false where the list is full. *added: it was not in the list. */
static bool note(void **list, void *object, bool *added)
{
	*added = false;
	for (unsigned int i = 0; i < AGENT_KEPT; i++) {
		if (list[i] == object)
			return true;
		if (!list[i]) {
			list[i] = object;
			return *added = true;
		}
	}
	return false;
}

/* False where the namespace is going: its refcount is 0, and cleanup_net() runs (net/core/net_namespace.c). */
static bool keep_net(struct agent_kept *kept, struct net *net)
{
	bool added;

	return check_net(net) && note((void **)kept->nets, net, &added);
}

static bool keep_device(struct agent_kept *kept, struct net_device *device)
{
	bool added;

	/* netdev_run_todo() waits for the last reference to a device that goes: do not take a new one. */
	if (device->reg_state != NETREG_REGISTERED && device->reg_state != NETREG_DUMMY)
		return false;
	if (!note((void **)kept->devices, device, &added))
		return false;
	if (added)
		dev_hold(device);
	return keep_net(kept, dev_net(device));
}

/* UDP's early demux takes no reference: the socket is valid in the RCU section only (net/ipv4/udp.c udp_v4_early_demux()). */
static bool is_unreferenced(const struct sk_buff *skb)
{
	return skb->destructor == sock_pfree && !sk_is_refcounted(skb->sk);
}

/* Does the packet keep its socket alive, by sk_wmem_alloc or by a reference? */
static bool owns_socket(const struct sk_buff *skb)
{
	return skb->destructor && skb->destructor != sock_rfree && !is_unreferenced(skb);
}

/* A full, request or time-wait socket: each has its refcount in struct sock_common. */
static bool keep_socket(struct agent_kept *kept, struct sock *sk, const struct sk_buff *skb)
{
	bool added;

	if (!keep_net(kept, sock_net(sk)) || !note((void **)kept->sockets, sk, &added))
		return false;
	if (!added || refcount_inc_not_zero(&sk->sk_refcnt))
		return true;
	for (unsigned int i = 0; i < AGENT_KEPT; i++)
		if (kept->sockets[i] == sk) /* the last one in the list */
			kept->sockets[i] = NULL;
	/* It is closed, and freed with the last packet that is charged to it (net/core/sock.c sk_free(), sock_wfree()). */
	return kept->by_packet = skb->sk == sk && owns_socket(skb);
}

/* Take a reference to a socket that has none, as an nfqueue does (net/netfilter/nf_queue.c __nf_queue()). */
static bool keep_owner(struct agent_kept *kept, struct sk_buff *skb)
{
	if (!skb->sk || owns_socket(skb))
		return true;
	if (!is_unreferenced(skb))
		return keep_socket(kept, skb->sk, skb);
	if (refcount_inc_not_zero(&skb->sk->sk_refcnt))
		skb->destructor = sock_edemux;
	else
		skb_orphan(skb); /* it is closed: the protocol looks up a socket again */
	return true;
}

/* Take a reference to a route that has none (SKB_DST_NOREF); on failure the packet is as it was. */
static bool keep_route(struct sk_buff *skb)
{
	struct dst_entry *dst = skb_dst(skb);

	if (!dst || !skb_dst_is_noref(skb))
		return true;
	if (!dst_hold_safe(dst))
		return false;
	skb_dst_force(skb); /* cannot fail: we have a reference */
	dst_release(dst);
	return true;
}

/*
 * Take the references that a packet needs; false, with none taken, where one of the objects is going away. Interrupts are
 * off. The caller of the probed function is in an RCU section, or has references of its own.
 */
bool agent_keep(struct agent_kept *kept, const struct agent_arm *arm, const unsigned long *arguments,
		struct sk_buff *skb)
{
	struct net_device *device = (struct net_device *)agent_device_of(skb);
	bool lasts;

	memset(kept, 0, sizeof(*kept));
	rcu_read_lock();
	lasts = keep_route(skb) && keep_owner(kept, skb) && (device ? keep_device(kept, device) : !skb->dev);
#if IS_ENABLED(CONFIG_NF_CONNTRACK)
	if (lasts && skb_nfct(skb))
		lasts = keep_net(kept, nf_ct_net((struct nf_conn *)skb_nfct(skb)));
#endif
	for (unsigned int i = 0; lasts && i < AGENT_ARGUMENTS; i++) {
		if (!arguments[i])
			continue;
		if (arm->device_arguments & BIT(i))
			lasts = keep_device(kept, (struct net_device *)arguments[i]);
		else if (arm->socket_arguments & BIT(i))
			lasts = keep_socket(kept, (struct sock *)arguments[i], skb);
		else if (arm->net_arguments & BIT(i))
			lasts = keep_net(kept, (struct net *)arguments[i]);
	}
	rcu_read_unlock();
	if (!lasts)
		agent_unkeep(kept);
	/*
	 * A kernel socket sends for the whole stack (net/ipv4/icmp.c icmp_xmit_lock()): held packets must not fill its send
	 * buffer, or the stack stops answering.
	 */
	else if (skb->sk && owns_socket(skb) && !kept->by_packet && sk_fullsock(skb->sk) && !skb->sk->sk_net_refcnt)
		skb_orphan(skb);
	return lasts;
}

/* Take the references again, for a copy of the packet. They cannot fail: each object has one. */
void agent_keep_again(const struct agent_kept *kept)
{
	for (unsigned int i = 0; i < AGENT_KEPT; i++) {
		if (kept->devices[i])
			dev_hold(kept->devices[i]);
		if (kept->sockets[i])
			sock_hold(kept->sockets[i]);
	}
}

void agent_unkeep(struct agent_kept *kept)
{
	for (unsigned int i = 0; i < AGENT_KEPT; i++) {
		if (kept->devices[i])
			dev_put(kept->devices[i]);
		if (kept->sockets[i])
			sock_gen_put(kept->sockets[i]);
	}
	memset(kept, 0, sizeof(*kept));
}

/*
 * A received packet whose socket was closed meanwhile goes on without it. Its protocol looks up a socket again: one may have
 * been opened since, and else the sender gets an error. A request socket that became a connection stays: the SYN-ACK
 * belongs to it (net/ipv4/tcp_output.c tcp_make_synack()).
 */
void agent_check_owner(struct sk_buff *skb)
{
	struct sock *sk = skb->sk;

	if (sk && (skb->destructor == sock_edemux || skb->destructor == sock_efree) &&
	    sk->sk_state != TCP_NEW_SYN_RECV && sk_unhashed(sk))
		skb_orphan(skb);
}

/* Does a packet need this device or namespace? */
bool agent_keeps(const struct agent_kept *kept, const void *object)
{
	for (unsigned int i = 0; i < AGENT_KEPT; i++)
		if (kept->devices[i] == object || (void *)kept->nets[i] == object)
			return true;
	return false;
}
