// SPDX-License-Identifier: GPL-2.0-only
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#include "init.h"

/* Print a line on the console; the host shows the console's end if a boot fails. stdio would cost page faults. */
void complain(const char *what)
{
	const char *parts[] = { "skblab init: ", what, ": ", strerror(errno), "\n" };

	for (size_t i = 0; i < sizeof(parts) / sizeof(*parts); i++)
		if (write(STDERR_FILENO, parts[i], strlen(parts[i])) < 0)
			return;
}

/* Have reads and writes of a descriptor return at once. */
void do_not_wait(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

int put(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	ssize_t written;

	if (fd < 0)
		return -1;
	written = write(fd, text, strlen(text));
	close(fd);
	return written < 0 ? -1 : 0;
}
