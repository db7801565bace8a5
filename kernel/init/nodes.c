// SPDX-License-Identifier: GPL-2.0-only
/*
 * The nodes of a guest in virtual time: network namespaces in which programs run, named on the kernel's command line:
 *   skblab_nodes=host,skb0,192.168.10.254/24,fd00:10::254/64;a,eth0,192.168.10.2/24,fd00:10::2/64;...
 * The first one takes the place of the machine at the other end of the guest's link; where there are more, it is their
 * switch.
 *
 * The links carry single frames with complete checksums, as a tap does: veth passes on whole GSO packets, and nobody
 * checks a checksum that is still to be computed.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/ethtool.h>
#include <linux/if_link.h>
#include <linux/rtnetlink.h>
#include <linux/sockios.h>
#include <linux/veth.h>
#include <net/if.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

#define MOST_NODES 17 /* src/skblab/spec.py MOST_NODES */

struct node {
	const char *name;
	int fd; /* its network namespace */
};

static struct node nodes[MOST_NODES];
static unsigned int count;

struct request {
	struct nlmsghdr header;
	struct ifinfomsg device;
	char attributes[256];
};

/* Append an attribute to a request that has room for it; return it. */
static struct rtattr *add(struct request *request, unsigned short type, const void *data, size_t bytes)
{
	struct rtattr *attribute = (struct rtattr *)((char *)request + NLMSG_ALIGN(request->header.nlmsg_len));

	attribute->rta_type = type;
	attribute->rta_len = RTA_LENGTH(bytes);
	if (data)
		memcpy(RTA_DATA(attribute), data, bytes);
	request->header.nlmsg_len = NLMSG_ALIGN(request->header.nlmsg_len) + RTA_ALIGN(attribute->rta_len);
	return attribute;
}

/* End an attribute that contains all that were appended since. */
static void end(const struct request *request, struct rtattr *attribute)
{
	attribute->rta_len = (char *)request + request->header.nlmsg_len - (char *)attribute;
}

/* Make a veth device here, and its other end in another namespace. */
static int make_veth(const char *here, const char *there, int namespace)
{
	struct request request = {
		.header = { .nlmsg_len = NLMSG_LENGTH(sizeof(struct ifinfomsg)), .nlmsg_type = RTM_NEWLINK,
			    .nlmsg_flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL },
	};
	struct {
		struct nlmsghdr header;
		struct nlmsgerr error;
		char rest[256];
	} answer = { 0 };
	struct ifinfomsg device = { 0 };
	struct rtattr *info, *data, *peer;
	int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_ROUTE);

	add(&request, IFLA_IFNAME, here, strlen(here) + 1);
	info = add(&request, IFLA_LINKINFO, NULL, 0);
	add(&request, IFLA_INFO_KIND, "veth", 5);
	data = add(&request, IFLA_INFO_DATA, NULL, 0);
	peer = add(&request, VETH_INFO_PEER, &device, sizeof(device));
	add(&request, IFLA_IFNAME, there, strlen(there) + 1);
	add(&request, IFLA_NET_NS_FD, &namespace, sizeof(namespace));
	end(&request, peer);
	end(&request, data);
	end(&request, info);
	if (fd < 0 || send(fd, &request, request.header.nlmsg_len, 0) < 0 || recv(fd, &answer, sizeof(answer), 0) < 0)
		return -1;
	close(fd);
	errno = -answer.error.error;
	return errno ? -1 : 0;
}

/* Have a device send single frames with their checksums. */
static void no_offloads(const char *device)
{
	static const unsigned int features[] = { ETHTOOL_STXCSUM, ETHTOOL_STSO, ETHTOOL_SGSO };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	for (size_t i = 0; i < sizeof(features) / sizeof(*features); i++) {
		struct ethtool_value off = { .cmd = features[i] };
		struct ifreq request = { .ifr_data = (void *)&off };

		snprintf(request.ifr_name, IFNAMSIZ, "%s", device);
		if (ioctl(fd, SIOCETHTOOL, &request) < 0)
			complain("cannot turn a link's offloads off");
	}
	close(fd);
}

/* Have a bridge in this namespace, with a port. */
static void add_port(const char *bridge, const char *port)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	struct ifreq request = { 0 };

	if (ioctl(fd, SIOCBRADDBR, bridge) < 0 && errno != EEXIST)
		complain("cannot make the switch");
	snprintf(request.ifr_name, IFNAMSIZ, "%s", bridge);
	request.ifr_ifindex = if_nametoindex(port);
	if (ioctl(fd, SIOCBRADDIF, &request) < 0)
		complain("cannot make a port of the switch");
	close(fd);
	no_offloads(port);
	set_up_link(strdup(port));
}

static int enter(int namespace)
{
	return setns(namespace, CLONE_NEWNET);
}

/* Make the network namespaces; the one of ours gets the link "vec0". */
void set_up_nodes(void)
{
	char *wanted = getenv("skblab_nodes"), *words[MOST_NODES];
	int ours;

	if (!wanted)
		return;
	ours = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
	for (; count < MOST_NODES && (words[count] = strsep(&wanted, ";")); count++) {
		nodes[count].name = strsep(&words[count], ",");
		if (!words[count] || unshare(CLONE_NEWNET) < 0)
			complain("cannot make a node");
		nodes[count].fd = open("/proc/self/ns/net", O_RDONLY | O_CLOEXEC);
		set_up_namespace();
	}
	enter(ours);
	for (unsigned int i = 0; i < count; i++) {
		const char *host = words[0]; /* "skb0,192.168..." */
		char bridge[IFNAMSIZ], device[IFNAMSIZ];

		snprintf(bridge, sizeof(bridge), "%.*s", (int)strcspn(host, ","), host);
		snprintf(device, sizeof(device), "%.*s", (int)strcspn(words[i], ","), words[i]);
		if (i == 0) {
			if (make_veth("vec0", count > 1 ? "guest" : bridge, nodes[0].fd) < 0)
				complain("cannot make the link");
			no_offloads("vec0");
			enter(nodes[0].fd);
			if (count > 1)
				add_port(bridge, "guest");
			else
				no_offloads(bridge);
		} else {
			enter(nodes[i].fd);
			if (make_veth(device, nodes[i].name, nodes[0].fd) < 0)
				complain("cannot make a node's link");
			no_offloads(device);
			enter(nodes[0].fd);
			add_port(bridge, nodes[i].name);
			enter(nodes[i].fd);
		}
		set_up_link(strdup(words[i]));
		enter(ours);
	}
	close(ours);
}

/* Have ip-netns(8) find the nodes in a root. */
void name_nodes(const char *root)
{
	for (unsigned int i = 0; i < count; i++) {
		char path[128], link[32];
		int fd;

		snprintf(path, sizeof(path), "%s/run/netns", root);
		mkdir(path, 0755);
		snprintf(path, sizeof(path), "%s/run/netns/%s", root, nodes[i].name);
		snprintf(link, sizeof(link), "/proc/self/fd/%d", nodes[i].fd);
		fd = open(path, O_RDONLY | O_CREAT | O_CLOEXEC, 0444);
		if (fd < 0 || mount(link, path, NULL, MS_BIND, NULL) < 0)
			complain("cannot name a node");
		close(fd);
	}
}

/* Enter a node's namespace by its name; "" is the guest's own. */
int enter_node(const char *name)
{
	for (unsigned int i = 0; i < count; i++)
		if (strcmp(nodes[i].name, name) == 0)
			return enter(nodes[i].fd);
	errno = ENOENT;
	return *name ? -1 : 0;
}
