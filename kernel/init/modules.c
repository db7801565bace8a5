// SPDX-License-Identifier: GPL-2.0-only
/*
 * Load the user's modules: /modules/00, /modules/01, ... in this order; /modules/00.orders has a module's name and,
 * after a blank, its parameters. The host gets the addresses of each module's code sections, to find functions there.
 */
#define _GNU_SOURCE /* asprintf() */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "init.h"

#define MOST_BYTES 512 /* of a message: arch/um/include/shared/mconsole.h MCONSOLE_MAX_DATA */

static ssize_t take(const char *path, char *text, size_t bytes)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got = fd < 0 ? -1 : read(fd, text, bytes - 1);

	if (fd >= 0)
		close(fd);
	text[got < 0 ? 0 : got] = '\0';
	return got;
}

/* "module NAME .text=0x... .text.unlikely=0x...": the address of each code section that is kept. */
static void tell_sections(const char *name)
{
	char *directory, *path, address[32], message[MOST_BYTES];
	int length = snprintf(message, sizeof(message), "module %.64s", name);
	struct dirent *section;
	DIR *sections;

	if (asprintf(&directory, "/sys/module/%s/sections", name) < 0)
		return;
	sections = opendir(directory);
	while (sections && (section = readdir(sections))) {
		if (strncmp(section->d_name, ".text", strlen(".text")))
			continue;
		if (asprintf(&path, "%s/%s", directory, section->d_name) < 0)
			break;
		take(path, address, sizeof(address));
		free(path);
		address[strcspn(address, "\n")] = '\0';
		if (length + strlen(section->d_name) + strlen(address) + 3 > sizeof(message))
			break;
		length += sprintf(message + length, " %s=%s", section->d_name, address);
	}
	if (sections)
		closedir(sections);
	free(directory);
	if (put("/proc/mconsole", message) < 0)
		complain("cannot tell the host where a module lies");
}

void load_modules(void)
{
	char path[32], orders[2048], what[160];

	if (access("/modules", F_OK) < 0)
		return;
	mkdir("/sys", 0555);
	mount("sysfs", "/sys", "sysfs", 0, NULL);
	for (int number = 0;; number++) {
		char *parameters;
		int fd;

		snprintf(path, sizeof(path), "/modules/%02d.orders", number);
		if (take(path, orders, sizeof(orders)) < 0)
			return;
		parameters = orders + strcspn(orders, " ");
		if (*parameters)
			*parameters++ = '\0';
		snprintf(path, sizeof(path), "/modules/%02d", number);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || syscall(SYS_finit_module, fd, parameters, 0) < 0) {
			/* A guest without a wanted module is useless: power off, so that the boot fails. */
			snprintf(what, sizeof(what), "cannot load the module %.100s", orders);
			complain(what);
			reboot(RB_POWER_OFF);
		}
		close(fd);
		tell_sections(orders);
	}
}
