// SPDX-License-Identifier: GPL-2.0-only
/* The guest's end of the links: addresses, and their announcement. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#include "init.h"

#define MOST_LINKS 8 /* src/skblab/host/links.py MOST */

/* Split "ADDRESS/PREFIX" in place; return the prefix length, or -1. */
static int split_prefix(char *text)
{
	char *slash = strchr(text, '/');

	if (!slash)
		return -1;
	*slash = '\0';
	return atoi(slash + 1);
}

static struct ifreq request_for(const char *device)
{
	struct ifreq request = { 0 };

	strncpy(request.ifr_name, device, IFNAMSIZ - 1);
	return request;
}

static int bring_up(int fd, const char *device)
{
	struct ifreq request = request_for(device);

	if (ioctl(fd, SIOCGIFFLAGS, &request) < 0)
		return -1;
	request.ifr_flags |= IFF_UP;
	return ioctl(fd, SIOCSIFFLAGS, &request);
}

static int set_ip4(int fd, const char *device, char *text)
{
	struct ifreq request = request_for(device);
	struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
	int prefix = split_prefix(text);

	address->sin_family = AF_INET;
	if (prefix < 0 || prefix > 32 || inet_pton(AF_INET, text, &address->sin_addr) != 1) {
		errno = EINVAL;
		return -1;
	}
	if (ioctl(fd, SIOCSIFADDR, &request) < 0)
		return -1;
	address->sin_addr.s_addr = prefix ? htonl(~0u << (32 - prefix)) : 0;
	return ioctl(fd, SIOCSIFNETMASK, &request);
}

static int set_ip6(int fd, const char *device, char *text)
{
	struct ifreq index = request_for(device);
	struct in6_ifreq request = { 0 };
	int prefix = split_prefix(text);

	if (prefix < 0 || prefix > 128 || inet_pton(AF_INET6, text, &request.ifr6_addr) != 1) {
		errno = EINVAL;
		return -1;
	}
	if (ioctl(fd, SIOCGIFINDEX, &index) < 0)
		return -1;
	request.ifr6_prefixlen = prefix;
	request.ifr6_ifindex = index.ifr_ifindex;
	return ioctl(fd, SIOCSIFADDR, &request);
}

/*
 * Announce the address by a gratuitous ARP request (RFC 5227 section 3), as ndisc_notify does for IPv6. An earlier ARP
 * request is received while the device is being opened, when no reply can be sent yet (net/core/dev.c __dev_open():
 * before dev_activate()), and is repeated only after a second. The kernel's own arp_notify announces before the route
 * is added, so that the first packet is lost.
 */
static int announce(int fd, const char *device, const char *ip4)
{
	struct ifreq index = request_for(device), hardware = request_for(device);
	struct sockaddr_ll everybody = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ARP),
		.sll_halen = ETH_ALEN,
		.sll_addr = { 0xff, 0xff, 0xff, 0xff, 0xff, 0xff },
	};
	struct ether_arp arp = {
		.arp_hrd = htons(ARPHRD_ETHER),
		.arp_pro = htons(ETH_P_IP),
		.arp_hln = ETH_ALEN,
		.arp_pln = sizeof(arp.arp_spa),
		.arp_op = htons(ARPOP_REQUEST),
	};
	int raw = socket(AF_PACKET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	ssize_t sent = -1;

	if (raw < 0)
		return -1;
	if (ioctl(fd, SIOCGIFINDEX, &index) == 0 && ioctl(fd, SIOCGIFHWADDR, &hardware) == 0 &&
	    inet_pton(AF_INET, ip4, arp.arp_spa) == 1) {
		everybody.sll_ifindex = index.ifr_ifindex;
		memcpy(arp.arp_sha, hardware.ifr_hwaddr.sa_data, ETH_ALEN);
		memcpy(arp.arp_tpa, arp.arp_spa, sizeof(arp.arp_tpa));
		sent = sendto(raw, &arp, sizeof(arp), 0, (struct sockaddr *)&everybody, sizeof(everybody));
	}
	close(raw);
	return sent < 0 ? -1 : 0;
}

static void set_option(const char *family, const char *device, const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "/proc/sys/net/%s/conf/%s/%s", family, device, name);
	put(path, value);
}

/* "vec0,192.168.10.1/24,fd00:10::1/64": a device of this namespace and its addresses. */
void set_up_link(char *words)
{
	char *next, *device = strtok_r(words, ",", &next), *address, *ip4 = NULL, *ip6 = NULL;
	int fd4 = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int fd6 = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	while ((address = strtok_r(NULL, ",", &next)))
		*(strchr(address, ':') ? &ip6 : &ip4) = address;
	/*
	 * No other host has the address: without duplicate detection it is usable at once. The larger of "all" and the
	 * device's own value counts (Documentation/networking/ip-sysctl.rst accept_dad). The link stays quiet: no
	 * router solicitations, no repeated multicast reports.
	 */
	set_option("ipv6", device, "accept_dad", "0");
	set_option("ipv6", device, "router_solicitations", "0");
	set_option("ipv6", device, "mldv2_unsolicited_report_interval", "1");
	set_option("ipv6", device, "ndisc_notify", "1");
	if (ip4 && set_ip4(fd4, device, ip4) < 0)
		complain("cannot set a link's IPv4 address");
	if (bring_up(fd4, device) < 0)
		complain("cannot bring up a link");
	if (ip4 && announce(fd4, device, ip4) < 0)
		complain("cannot announce a link's IPv4 address");
	if (ip6 && set_ip6(fd6, device, ip6) < 0)
		complain("cannot set a link's IPv6 address");
	close(fd4);
	close(fd6);
}

/* Set up what each network namespace has. */
void set_up_namespace(void)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (bring_up(fd, "lo") < 0)
		complain("cannot bring up lo");
	close(fd);
	put("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
	put("/proc/sys/net/ipv6/mld_qrv", "1");
}

void set_up_links(void)
{
	char name[] = "skblab_link0", *words;

	set_up_namespace();
	set_up_nodes();
	for (; name[11] < '0' + MOST_LINKS && (words = getenv(name)); name[11]++)
		set_up_link(words);
}
