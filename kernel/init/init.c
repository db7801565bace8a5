// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's first process: static, no shell.
 *
 * It gives lo and the link their addresses, says "ready" through /proc/mconsole (arch/um/drivers/mconsole_kern.c: a
 * write there becomes a USER_NOTIFY datagram on the host), mounts what a guest is expected to have, and then reaps
 * children for ever. Readiness comes first: everything that can wait, waits until after it.
 *
 * Its orders are parameters of the kernel's command line, which the kernel hands to init as its environment
 * (init/main.c unknown_bootoption(): name=value without a dot in the name):
 *   skblab_link=vec0  skblab_ip4=192.168.10.1/24  skblab_ip6=fd00:10::1/64  skblab_memory=5  skblab_socket=6
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <linux/ipv6.h>
#include <net/if.h>
#include <net/if_arp.h>
#include <netinet/if_ether.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

/* One line on the console; the host shows its tail where a boot goes wrong. No stdio: it costs page faults. */
static void complain(const char *what)
{
	const char *parts[] = { "skblab init: ", what, ": ", strerror(errno), "\n" };

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0)
			return;
}

/* Split "ADDRESS/PREFIX" in place; returns the prefix length, or -1. */
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
 * Tell everybody on the link whose the address is: a gratuitous ARP request (RFC 5227 section 3), as ndisc_notify does
 * it for IPv6. A host that asked before has its question read while the device is being opened, when no answer can be
 * sent yet (net/core/dev.c __dev_open(): dev_activate() comes later), and would ask again only after a second. The
 * kernel's own arp_notify speaks before the route stands, and then the first packet is lost.
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

static int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (fd < 0)
		return -1;
	written = write(fd, text, strlen(text));
	close(fd);
	return written < 0 ? -1 : 0;
}

static void set_option(const char *family, const char *device, const char *name, const char *value)
{
	char path[128];

	snprintf(path, sizeof(path), "/proc/sys/net/%s/conf/%s/%s", family, device, name);
	put(path, value);
}

static void set_up_link(void)
{
	const char *device = getenv("skblab_link");
	char *ip4 = getenv("skblab_ip4");
	char *ip6 = getenv("skblab_ip6");
	int fd4 = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	int fd6 = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	if (bring_up(fd4, "lo") < 0)
		complain("cannot bring up lo");
	if (!device)
		return;
	/*
	 * Nobody else is on a private link: an address needs no duplicate detection and can be used at once.
	 * The larger of "all" and the device's own counts (Documentation/networking/ip-sysctl.rst accept_dad).
	 * And the link is to be quiet: no asking for routers, no repeated reports of multicast groups.
	 */
	put("/proc/sys/net/ipv6/conf/all/accept_dad", "0");
	put("/proc/sys/net/ipv6/mld_qrv", "1");
	set_option("ipv6", device, "accept_dad", "0");
	set_option("ipv6", device, "router_solicitations", "0");
	set_option("ipv6", device, "mldv2_unsolicited_report_interval", "1");
	set_option("ipv6", device, "ndisc_notify", "1");
	if (ip4 && set_ip4(fd4, device, ip4) < 0)
		complain("cannot set the link's IPv4 address");
	if (bring_up(fd4, device) < 0)
		complain("cannot bring up the link");
	if (ip4 && announce(fd4, device, ip4) < 0)
		complain("cannot announce the link's IPv4 address");
	if (ip6 && set_ip6(fd6, device, ip6) < 0)
		complain("cannot set the link's IPv6 address");
	close(fd4);
	close(fd6);
}

/* The agent maps the host's memory and hears its doorbell by descriptors that this kernel's process inherited. */
static void load_agent(void)
{
	const char *memory = getenv("skblab_memory"), *doorbell = getenv("skblab_socket");
	char parameters[64];
	int fd;

	if (!memory || !doorbell)
		return;
	fd = open("/agent.ko", O_RDONLY | O_CLOEXEC);
	snprintf(parameters, sizeof(parameters), "memory_fd=%s socket_fd=%s", memory, doorbell);
	if (fd < 0 || syscall(SYS_finit_module, fd, parameters, 0) < 0)
		complain("cannot load the agent");
	close(fd);
}

static void mount_at(const char *directory, const char *name, const char *kind)
{
	char path[64];

	snprintf(path, sizeof(path), "%s/%s", directory, name);
	if (mount(kind, path, kind, 0, NULL) < 0)
		complain(path);
}

/* Turn "6c73" into "ls", in place: a kernel's command line has no other way to carry spaces and quotes. */
static char *from_hex(char *text)
{
	unsigned int byte;
	char *out = text;

	for (const char *in = text; sscanf(in, "%2x", &byte) == 1; in += 2)
		*out++ = byte;
	*out = '\0';
	return text;
}

/* Become a shell among the host's own programs. */
static void run_shell(const sigset_t interrupt, const char *option, const char *command)
{
	sigprocmask(SIG_UNBLOCK, &interrupt, NULL);
	if (chroot("/host") < 0 || chdir("/tmp") < 0)
		_exit(126);
	execve("/bin/sh", (char *[]){ "sh", (char *)option, (char *)command, NULL },
	       (char *[]){ "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TERM=linux", "PS1=guest# ",
			   "PYTHONUNBUFFERED=1", NULL });
	_exit(127);
}

/*
 * A shell for each skblab_runN. What they print goes to the kernel's log. Their end is told to the host: a command that
 * was to serve and has ended will not answer.
 */
static void run_commands(const sigset_t interrupt)
{
	char name[32];

	/* Not before the host says so (mconsole "cad"): it wants to see what they do from their first moment. */
	sigwaitinfo(&interrupt, NULL);
	for (int number = 0;; number++) {
		char *command;

		snprintf(name, sizeof(name), "skblab_run%d", number);
		command = getenv(name);
		if (!command)
			return;
		from_hex(command);
		if (fork() == 0) {
			setsid();
			run_shell(interrupt, "-c", command);
		}
	}
}

/* A shell on tty1, another one when it ends; the host has the terminal's other side. */
static void keep_console(const sigset_t interrupt)
{
	if (!getenv("skblab_console") || fork())
		return;
	for (;;) {
		if (fork() == 0) {
			int fd;

			setsid();
			fd = open("/host/dev/tty1", O_RDWR);
			if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) < 0)
				complain("cannot open the console");
			dup2(fd, 0);
			dup2(fd, 1);
			dup2(fd, 2);
			run_shell(interrupt, "-i", NULL);
		}
		wait(NULL);
	}
}

/* The host's own tree, read-only, but for what is the kernel's own or in memory. */
static bool mount_host(void)
{
	const char *root = getenv("skblab_root");

	if (!root || strcmp(root, "host"))
		return false;
	mkdir("/host", 0755);
	if (mount("none", "/host", "hostfs", MS_RDONLY, "/") < 0) {
		complain("cannot mount the host's files");
		return false;
	}
	mount_at("/host", "proc", "proc");
	mount_at("/host", "sys", "sysfs");
	mount_at("/host", "dev", "devtmpfs");
	mount_at("/host", "tmp", "tmpfs");
	mount_at("/host", "run", "tmpfs");
	return true;
}

int main(void)
{
	sigset_t interrupt;

	/* Ctrl-Alt-Del is SIGINT for us, and not a reboot (kernel/reboot.c ctrl_alt_del()). */
	sigemptyset(&interrupt);
	sigaddset(&interrupt, SIGINT);
	sigprocmask(SIG_BLOCK, &interrupt, NULL);
	reboot(RB_DISABLE_CAD);
	mkdir("/proc", 0555);
	if (mount("proc", "/proc", "proc", 0, NULL) < 0)
		complain("cannot mount /proc");
	set_up_link();
	if (put("/proc/mconsole", "ready") < 0)
		complain("cannot tell the host that the guest is ready");
	load_agent();

	mkdir("/sys", 0555);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mkdir("/tmp", 01777);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	if (mount_host()) {
		keep_console(interrupt);
		run_commands(interrupt);
	}
	for (;;) {
		char ended[32];
		int status;

		if (wait(&status) < 0) {
			pause();
			continue;
		}
		snprintf(ended, sizeof(ended), "ended %d", WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status));
		put("/proc/mconsole", ended);
	}
}
