// SPDX-License-Identifier: GPL-2.0-only
/* A device with a queue of few places, and a protocol: they complain where they are not called as the stack would. */
#include <linux/etherdevice.h>
#include <linux/module.h>
#include <linux/netdevice.h>

#define ETH_P_OWN 0x88b5 /* IEEE 802: for local experiments */

static struct net_device *device;

static int places = 1000;

/* There is room again. */
static int set_places(const char *value, const struct kernel_param *parameter)
{
	const int error = param_set_int(value, parameter);

	if (!error && device)
		netif_wake_queue(device);
	return error;
}

static const struct kernel_param_ops places_ops = {
	.set = set_places,
	.get = param_get_int,
};
module_param_cb(places, &places_ops, &places, 0644);

static int sent;
module_param(sent, int, 0444);
static int received;
module_param(received, int, 0444);

static netdev_tx_t own_xmit(struct sk_buff *skb, struct net_device *dev)
{
	struct netdev_queue *queue = skb_get_tx_queue(dev, skb);

	WARN_ON(dev != device || skb->dev != dev || !netif_running(dev));
	WARN_ON(netif_tx_queue_stopped(queue));
	lockdep_assert_held(&queue->_xmit_lock);
	WARN_ON(!in_softirq());
	sent++;
	if (!--places)
		netif_tx_stop_queue(queue);
	consume_skb(skb);
	return NETDEV_TX_OK;
}

static int own_rcv(struct sk_buff *skb, struct net_device *dev, struct packet_type *type, struct net_device *orig)
{
	received += skb->len;
	consume_skb(skb);
	return NET_RX_SUCCESS;
}

static const struct net_device_ops own_ops = {
	.ndo_start_xmit = own_xmit,
};

static struct packet_type own_type __read_mostly = {
	.type = cpu_to_be16(ETH_P_OWN),
	.func = own_rcv,
};

static int __init own_init(void)
{
	int error;

	device = alloc_etherdev(0);
	if (!device)
		return -ENOMEM;
	device->netdev_ops = &own_ops;
	eth_hw_addr_random(device);
	error = register_netdev(device);
	if (error) {
		free_netdev(device);
		return error;
	}
	dev_add_pack(&own_type);
	return 0;
}

static void __exit own_exit(void)
{
	dev_remove_pack(&own_type);
	unregister_netdev(device);
	free_netdev(device);
}

module_init(own_init);
module_exit(own_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("A driver and a protocol to be tested");
