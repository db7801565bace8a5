// SPDX-License-Identifier: GPL-2.0-only
/* The root file system of the guest's programs, and the shells on its consoles. */
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "init.h"

#define ROOT "/guest" /* the "/" of the guest's programs */

static void mount_at(const char *name, const char *kind)
{
	char path[64];

	snprintf(path, sizeof(path), ROOT "/%s", name);
	mkdir(path, 0755);
	if (mount(kind, path, kind, 0, NULL) < 0)
		complain(path);
}

/* Turn "6c73" into "ls" in place: a kernel's command line cannot carry spaces and quotes otherwise. */
static char *from_hex(char *text)
{
	unsigned int byte;
	char *out = text;

	for (const char *in = text; sscanf(in, "%2x", &byte) == 1; in += 2)
		*out++ = byte;
	*out = '\0';
	return text;
}

/* Execute a shell in the guest's root. */
static void run_shell(void)
{
	if (chroot(ROOT) < 0 || chdir("/tmp") < 0)
		_exit(126);
	execve("/bin/sh", (char *[]){ "sh", "-i", NULL },
	       (char *[]){ "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/tmp", "TERM=linux", "PS1=guest# ",
			   NULL });
	_exit(127);
}

/* Run a shell on a terminal, again and again; the host has the terminal's other side. */
static void keep_console(int number)
{
	char path[32];

	snprintf(path, sizeof(path), ROOT "/dev/tty%d", number);
	for (;;) {
		if (fork() == 0) {
			int fd;

			setsid();
			fd = open(path, O_RDWR);
			if (fd < 0 || ioctl(fd, TIOCSCTTY, 0) < 0)
				complain("cannot open the console");
			dup2(fd, 0);
			dup2(fd, 1);
			dup2(fd, 2);
			run_shell();
		}
		wait(NULL);
	}
}

void keep_consoles(void)
{
	const char *consoles = getenv("skblab_consoles");

	for (int number = 1; consoles && number <= atoi(consoles); number++)
		if (fork() == 0)
			keep_console(number);
}

/* Add the lab's names to the root's /etc/hosts: "192.168.10.1=guest,192.168.10.254=host". */
static void name_hosts(void)
{
	char *names = getenv("skblab_hosts"), *next, *pair = names ? strtok_r(names, ",", &next) : NULL;
	FILE *file = pair ? fopen(ROOT "/etc/hosts", "a") : NULL;

	for (; file && pair; pair = strtok_r(NULL, ",", &next))
		fprintf(file, "%.*s %s\n", (int)strcspn(pair, "="), pair, strchr(pair, '=') + 1);
	if (file ? fclose(file) == EOF : pair != NULL)
		complain("cannot name the lab's addresses");
}

/* Mount a directory of the host under an overlay that keeps writes in memory; read-only if the overlay fails. */
static bool mount_directory(const char *directory)
{
	bool overlaid;

	mkdir("/lower", 0755);
	mkdir("/upper", 0755);
	if (mount("none", "/lower", "hostfs", MS_RDONLY, directory) < 0) {
		complain("cannot mount the host's files");
		return false;
	}
	overlaid = mount("tmpfs", "/upper", "tmpfs", 0, NULL) == 0 && mkdir("/upper/new", 0755) == 0 &&
		   mkdir("/upper/work", 0755) == 0 &&
		   mount("overlay", ROOT, "overlay", 0, "lowerdir=/lower,upperdir=/upper/new,workdir=/upper/work") == 0;
	if (!overlaid) {
		complain("the host's files are read-only: no overlay over them");
		if (mount("/lower", ROOT, NULL, MS_BIND, NULL) < 0)
			return false;
	}
	mount_at("proc", "proc");
	mount_at("sys", "sysfs");
	mount_at("dev", "devtmpfs");
	mount_at("dev/pts", "devpts");
	if (!overlaid || access(ROOT "/tmp", F_OK) < 0) /* else it is the host's /tmp under the overlay */
		mount_at("tmp", "tmpfs");
	mount_at("run", "tmpfs");
	name_nodes(ROOT);
	name_hosts();
	return true;
}

/* Report to the waiting host what became of the disk, with strerror(error) unless it is 0. */
static void tell_disk(const char *what, int error)
{
	static int mconsole = -1; /* kept open: after the move, the disk may have no /proc */
	char message[256];

	if (mconsole < 0)
		mconsole = open("/proc/mconsole", O_WRONLY | O_CLOEXEC);
	snprintf(message, sizeof(message), "disk %s%s%s", what, error ? ": " : "", error ? strerror(error) : "");
	if (write(mconsole, message, strlen(message)) < 0)
		complain("cannot tell the host of the disk");
}

/* Whether this machine runs a program: by its ELF header it is for x86-64, or it is a script. */
static bool runs_here(const char *program)
{
	Elf64_Ehdr header = { 0 };
	int fd = open(program, O_RDONLY | O_CLOEXEC);
	bool read_it = fd >= 0 && read(fd, &header, sizeof(header)) > 0;

	close(fd);
	return read_it && (memcmp(header.e_ident, ELFMAG, SELFMAG) || header.e_machine == EM_X86_64);
}

/* Mount the disk, or its first partition. */
static bool mount_disk(void)
{
	static const char *const devices[] = { "/dev/ubda", "/dev/ubda1" };

	if (mount("dev", "/dev", "devtmpfs", 0, NULL) < 0)
		complain("cannot mount /dev");
	for (size_t i = 0; i < sizeof(devices) / sizeof(*devices); i++)
		if (mount(devices[i], ROOT, "ext4", 0, NULL) == 0)
			return true;
		else if (errno != ENOENT)
			complain(devices[i]);
	tell_disk("none", 0);
	return false;
}

struct root mount_root(void)
{
	const char *disk = getenv("skblab_disk");
	char *directory = getenv("skblab_root");
	struct root root = { 0 };

	mkdir(ROOT, 0755);
	if (disk && mount_disk()) {
		root.at = ROOT;
		root.init = "/sbin/init";
	} else if (directory && mount_directory(from_hex(directory))) {
		root.at = ROOT;
	}
	return root;
}

/* Execute the disk's init: its tree replaces ours as "/", as in switch_root(8). */
void hand_over(const struct root *root)
{
	struct stat there;
	int fd;

	tell_disk("mounted", 0);
	if (chdir(root->at) < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 || chdir("/") < 0) {
		tell_disk("not entered", errno);
		return;
	}
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	if (stat(root->init, &there) < 0) {
		tell_disk("no init", errno);
		return;
	}
	if (!runs_here(root->init)) {
		tell_disk("wrong init", 0);
		return;
	}
	tell_disk("entered", 0);
	fd = open("/dev/console", O_RDWR);
	for (int standard = 0; fd >= 0 && standard < 3; standard++)
		dup2(fd, standard);
	execve(root->init, (char *[]){ (char *)root->init, NULL },
	       (char *[]){ "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/", "TERM=linux",
			   NULL });
	complain("cannot run the disk's init");
}
