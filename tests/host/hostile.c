// SPDX-License-Identifier: GPL-2.0-only
/* A guest's kernel in the hands of somebody hostile: it makes the host's system calls, and tells what came of each. */
#include <linux/fcntl.h>
#include <linux/in.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/sched.h>
#include <linux/socket.h>
#include <linux/stat.h>
#include <linux/string.h>
#include <uapi/linux/capability.h>
#include <uapi/linux/mount.h>
#include <uapi/linux/prctl.h>
#include <uapi/linux/ptrace.h>

static char *outside = "/none", *inside = "/none", *device = "/none", *server = "/none";
static int port, stranger;
module_param(outside, charp, 0);
module_param(inside, charp, 0);
module_param(device, charp, 0);
module_param(server, charp, 0);
module_param(port, int, 0);
module_param(stranger, int, 0);

static long host(long number, long a, long b, long c, long d)
{
	register long fourth asm("r10") = d;
	register long fifth asm("r8") = 0;
	long result;

	asm volatile("syscall" : "=a"(result) : "0"(number), "D"(a), "S"(b), "d"(c), "r"(fourth), "r"(fifth)
		     : "rcx", "r11", "memory");
	return result;
}

#define tell(what, ...) pr_info("hostile: " what ": %ld\n", host(__VA_ARGS__))

struct unix_address {
	unsigned short family;
	char path[108];
};

static void connect_to_file(void)
{
	struct unix_address address = { .family = AF_UNIX };
	long datagrams = host(41, AF_UNIX, SOCK_DGRAM, 0, 0);

	tell("stream socket", 41, AF_UNIX, SOCK_STREAM, 0, 0);
	tell("sequenced socket", 41, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, 0);
	strscpy(address.path, server, sizeof(address.path));
	tell("datagram socket to a stream server", 42, datagrams, (long)&address, sizeof(address), 0);
}

static void connect_to_loopback(void)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(port) };

	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	tell("connect to loopback", 42, host(41, AF_INET, SOCK_STREAM, 0, 0), (long)&address, sizeof(address), 0);
}

struct entry {
	u64 inode;
	s64 offset;
	u16 bytes;
	u8 kind;
	char name[];
};

static void list(const char *directory)
{
	static char bytes[4096];
	long fd = host(2, (long)directory, O_RDONLY | O_DIRECTORY, 0, 0), got;

	while ((got = host(217, fd, (long)bytes, sizeof(bytes), 0)) > 0)
		for (long at = 0; at < got; at += ((struct entry *)(bytes + at))->bytes)
			pr_info("hostile: in %s: %s\n", directory, ((struct entry *)(bytes + at))->name);
	host(3, fd, 0, 0, 0);
}

static int __init hostile_init(void)
{
	struct {
		u32 version;
		int pid;
	} of_us = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct capabilities[2] = {};

	list("/");
	list("/proc");
	list("/dev");
	list("/dev/shm");
	tell("read outside", 2, (long)outside, O_RDONLY, 0, 0);
	tell("write outside", 2, (long)outside, O_WRONLY, 0, 0);
	tell("read inside", 2, (long)inside, O_RDONLY, 0, 0);
	tell("write inside", 2, (long)inside, O_WRONLY, 0, 0);
	tell("remove inside", 87, (long)inside, 0, 0, 0);
	tell("open device", 2, (long)device, O_RDWR, 0, 0);
	tell("make a directory", 83, (long)"/made", 0755, 0, 0);
	tell("make a device", 133, (long)"/dev/shm/guest/made", S_IFBLK | 0600, 0x800, 0);
	tell("remount", 165, 0, (long)"/", 0, MS_REMOUNT | MS_BIND);
	tell("mount", 165, (long)"none", (long)"/dev/shm/guest", (long)"tmpfs", 0);
	tell("unmount", 166, (long)"/dev/shm/guest", 2, 0, 0);
	tell("change root", 161, (long)"/dev", 0, 0, 0);
	tell("leave namespaces", 272, CLONE_NEWUSER | CLONE_NEWNS, 0, 0, 0);
	tell("fork into namespaces", 56, CLONE_NEWUSER | 17, 0, 0, 0);
	tell("fork by clone3", 435, 0, 0, 0, 0);
	tell("io_uring", 425, 1, (long)capabilities, 0, 0);
	tell("keyring", 250, 0, -3, 0, 0);
	tell("32-bit number", 0x40000000 | 41, AF_INET, SOCK_STREAM, 0, 0);
	tell("vsock", 41, AF_VSOCK, SOCK_STREAM, 0, 0);
	tell("netlink", 41, AF_NETLINK, SOCK_RAW, 0, 0);
	tell("packet socket", 41, AF_PACKET, SOCK_RAW, 0, 0);
	tell("perf events", 298, 0, 0, -1, -1);
	tell("bpf", 321, 0, 0, 0, 0);
	tell("userfaultfd", 323, 0, 0, 0, 0);
	tell("signal to process 1", 62, 1, 9, 0, 0);
	tell("signal to a stranger", 62, stranger, 0, 0, 0);
	tell("trace process 1", 101, PTRACE_ATTACH, 1, 0, 0);
	connect_to_file();
	connect_to_loopback();
	host(125, (long)&of_us, (long)capabilities, 0, 0);
	pr_info("hostile: capabilities: %d\n", capabilities[0].permitted | capabilities[1].permitted);
	tell("bounding set", 157, PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0);
	tell("no new privileges", 157, PR_GET_NO_NEW_PRIVS, 0, 0, 0);
	pr_info("hostile: done\n");
	return 0;
}

module_init(hostile_init);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Tries what it must not");
