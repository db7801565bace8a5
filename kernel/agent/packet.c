// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which members of an sk_buff are valid. Members share their place in unions, and the sk_buff does not say which of them is
 * in use; so a pointer is followed only where it is known to be one.
 */
#include <linux/hashtable.h>
#include <linux/slab.h>
#include <net/sock.h>

#include "follow.h"
#include "packet.h"

struct known_device {
	struct hlist_node node;
	const struct net_device *device;
};

static DEFINE_HASHTABLE(devices, 8); /* that are registered, in every network namespace */
const struct net_device *agent_recent_device;

static struct known_device *known(const struct net_device *device)
{
	struct known_device *it;

	hash_for_each_possible(devices, it, node, (unsigned long)device)
		if (it->device == device)
			return it;
	return NULL;
}

/* agent_device_of() where it is not the recent device. Interrupts are off. */
const struct net_device *agent_device_find(const struct net_device *device)
{
	if (!device || !known(device))
		return NULL;
	return agent_recent_device = device;
}

/* The device's name changes, or its memory is freed. */
static void forget_name(const struct net_device *device)
{
	unsigned long flags;

	local_irq_save(flags);
	for (int i = 0; i < AGENT_NAMED; i++)
		if (agent_devices_named[i] == device)
			agent_devices_named[i] = NULL;
	local_irq_restore(flags);
}

/* A device comes or goes; one that moves to another namespace does both. The caller has the RTNL. */
static int device_changes(struct notifier_block *block, unsigned long event, void *info)
{
	const struct net_device *device = netdev_notifier_info_to_dev(info);
	struct known_device *it;
	unsigned long flags;

	if (event == NETDEV_REGISTER && !known(device)) {
		it = kmalloc(sizeof(*it), GFP_KERNEL); /* no memory: its packets are reported without a device */
		if (!it)
			return NOTIFY_DONE;
		it->device = device;
		local_irq_save(flags);
		hash_add(devices, &it->node, (unsigned long)device);
		local_irq_restore(flags);
	} else if (event == NETDEV_CHANGENAME) {
		forget_name(device);
	} else if (event == NETDEV_UNREGISTER) {
		forget_name(device);
		local_irq_save(flags);
		if (agent_recent_device == device)
			agent_recent_device = NULL;
		it = known(device);
		if (it)
			hash_del(&it->node);
		local_irq_restore(flags);
		kfree(it);
	}
	return NOTIFY_DONE;
}

static struct notifier_block device_notifier = { .notifier_call = device_changes };

/* The notifier is called for each device that there is, and for new ones. */
int agent_devices_begin(void)
{
	return register_netdevice_notifier(&device_notifier);
}

void agent_devices_end(void)
{
	unregister_netdevice_notifier(&device_notifier); /* calls it with NETDEV_UNREGISTER for each device */
}

static bool is_memory(const char *at, unsigned int bytes)
{
	return virt_addr_valid(at) && virt_addr_valid(at + bytes - 1);
}

/* As sk_fullsock() (include/net/sock.h), which KASAN checks. A packet that is being freed may still point to its freed socket. */
static __no_kasan_or_inline bool is_whole_socket(const struct sock *sk)
{
	return BIT(READ_ONCE(sk->sk_state)) & ~(TCPF_TIME_WAIT | TCPF_NEW_SYN_RECV);
}

/* Where a pointer in the sk_buff leads, if so many bytes there are of its type; else NULL. */
static __no_kasan_or_inline const char *followed_from(const struct sk_buff *skb, u16 offset, unsigned int bytes)
{
	const struct sock *sk = skb->sk;

	if (offset == offsetof(struct sk_buff, dev))
		return (const char *)agent_device_of(skb);
	if (offset == offsetof(struct sk_buff, sk) && is_memory((const char *)sk, sizeof(struct sock_common)) &&
	    bytes > sizeof(struct sock_common) && !is_whole_socket(sk))
		return NULL; /* a request or time-wait socket: nothing more of a struct sock is there */
	return *(const char *const *)((const char *)skb + offset);
}

/* Copy a field that a person has named; false where a pointer leads nowhere. The memory may be freed: so without KASAN. */
__no_kasan_or_inline bool agent_field_copy(const struct sk_buff *skb, const struct agent_field *field, u8 *to)
{
	const unsigned int last = field->hops - 1;
	const char *at = (const char *)skb + field->offsets[0];

	for (unsigned int hop = 1; hop <= last; hop++) {
		const unsigned int bytes = hop == last ? field->bytes : sizeof(long);

		at = hop == 1 ? followed_from(skb, field->offsets[0], field->offsets[1] + bytes) :
				*(const char *const volatile *)at;
		if (!at || !is_memory(at += field->offsets[hop], bytes))
			return false;
	}
	for (unsigned int i = 0; i < field->bytes; i++)
		to[i] = *(const volatile u8 *)(at + i);
	return true;
}

/* The fields' values, one behind the other; a field that cannot be reached is 0. */
void agent_fields_copy(const struct sk_buff *skb, u8 *to)
{
	for (u32 i = 0; i < agent_following.fields; i++) {
		const struct agent_field *field = &agent_following.field[i];

		if (!agent_field_copy(skb, field, to))
			memset(to, 0, field->bytes);
		to += field->bytes;
	}
}
