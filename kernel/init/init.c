// SPDX-License-Identifier: GPL-2.0-only
/*
 * The guest's first process: static, without a shell.
 *
 * It gives lo and the link their addresses, says "ready" through /proc/mconsole (arch/um/drivers/mconsole_kern.c: a
 * write there becomes a USER_NOTIFY datagram on the host), mounts the usual file systems, and then executes the init of
 * the guest's disk, or without a disk serves the host for ever. Only the user's modules are loaded before "ready";
 * everything else comes after it.
 *
 * Its orders are parameters of the kernel's command line, which the kernel passes to init as its environment
 * (init/main.c unknown_bootoption(): name=value without a dot in the name):
 *   skblab_link0=vec0,192.168.10.1/24,fd00:10::1/64  skblab_link1=...  skblab_memory=5  skblab_socket=6  skblab_requests=7
 *   skblab_root=2f (a directory of the host, in hex)  skblab_disk=1 (the root is on /dev/ubda)
 *   skblab_consoles=6 (tty1 to tty6 have a shell each)
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

/* The agent maps the host's memory and receives its doorbell by descriptors that this kernel's process inherited. */
static void load_agent(void)
{
	const char *memory = getenv("skblab_memory"), *doorbell = getenv("skblab_socket");
	const char *requests = getenv("skblab_requests"), *clock = getenv("skblab_clock");
	char parameters[128];
	int fd;

	if (!memory || !doorbell || !requests)
		return;
	fd = open("/agent.ko", O_RDONLY | O_CLOEXEC);
	snprintf(parameters, sizeof(parameters), "memory_fd=%s socket_fd=%s requests_fd=%s clock_fd=%s", memory,
		 doorbell, requests, clock ? clock : "-1");
	if (fd < 0 || syscall(SYS_finit_module, fd, parameters, 0) < 0) {
		/* A lab needs the agent: power off, so that the host fails at once instead of waiting. */
		complain("cannot load the agent");
		reboot(RB_POWER_OFF);
	}
	close(fd);
}

int main(void)
{
	struct root root;

	/* Ctrl-Alt-Del sends us SIGINT, which we ignore, instead of rebooting (kernel/reboot.c ctrl_alt_del()). */
	reboot(RB_DISABLE_CAD);
	mkdir("/proc", 0555);
	if (mount("proc", "/proc", "proc", 0, NULL) < 0)
		complain("cannot mount /proc");
	set_up_links();
	load_modules();
	if (put("/proc/mconsole", "ready") < 0)
		complain("cannot tell the host that the guest is ready");
	load_agent();

	mkdir("/sys", 0555);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	mkdir("/tmp", 01777);
	mount("tmpfs", "/tmp", "tmpfs", 0, NULL);
	root = mount_root();
	if (root.at && !root.init)
		keep_consoles();
	serve_host(&root);
	if (root.init)
		hand_over(&root);
	for (;;)
		if (wait(NULL) < 0)
			pause();
}
