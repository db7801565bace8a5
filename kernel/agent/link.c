// SPDX-License-Identifier: GPL-2.0-only
/* Frames that the guest's ends of its links have lost. UML's vector devices count them, in any network namespace. */
#include <linux/device.h>
#include <linux/netdevice.h>
#include <net/net_namespace.h>

#include "agent.h"

#define VECTOR "uml-vector" /* arch/um/drivers/vector_kern.c DRIVER_NAME */

/* The counters change in softirqs only, and this runs in one. */
void agent_count_losses(void)
{
	u64 cut = 0, no_memory = 0, refused = 0;
	struct net_device *device;
	struct net *net;

	rcu_read_lock();
	for_each_net_rcu(net) {
		for_each_netdev_rcu(net, device) {
			const struct net_device_stats *stats = &device->stats;

			if (!device->dev.parent || strncmp(dev_name(device->dev.parent), VECTOR, strlen(VECTOR)))
				continue;
			cut += stats->rx_length_errors;
			no_memory += stats->rx_errors - stats->rx_length_errors;
			refused += stats->tx_dropped;
		}
	}
	rcu_read_unlock();
	agent_shared->link_cut = cut;
	agent_shared->link_no_memory = no_memory;
	agent_shared->link_refused = refused;
}
