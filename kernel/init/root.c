// SPDX-License-Identifier: GPL-2.0-only
/* The files that the guest's programs see, and the programs that it starts. */
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

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
static void run_shell(sigset_t interrupt, const char *option, const char *command)
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
void run_commands(sigset_t interrupt)
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
void keep_console(sigset_t interrupt)
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
bool mount_root(void)
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
