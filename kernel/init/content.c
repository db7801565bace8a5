// SPDX-License-Identifier: GPL-2.0-only
/* The content of files of the guest, for the host. Nothing here waits: content_moves() is called again when it can. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include "exec.h"
#include "init.h"

#define AT_ONCE_BYTES (64 * 1024)
#define MOST_AT_ONCE 64 /* pieces, of a file without an end: then others have their turn */

struct content {
	int to; /* the host's pipe */
	char **paths; /* until they are open */
	int error; /* of the first file that cannot be read: nothing comes behind it */
	size_t next, count;
	size_t from, end; /* of what is read, and not yet written */
	char bytes[AT_ONCE_BYTES];
	int files[];
};

/* Return the content of files that have still to be opened, for a descriptor that it closes with itself; or NULL. */
struct content *content_make(char **paths, size_t count, int to)
{
	struct content *content = malloc(sizeof(*content) + count * sizeof(*content->files));

	if (!content)
		return NULL;
	content->to = to;
	content->paths = paths;
	content->error = 0;
	content->next = content->from = content->end = 0;
	content->count = count;
	for (size_t i = 0; i < count; i++)
		content->files[i] = -1;
	do_not_wait(to);
	return content;
}

/* Open the files, in the root that was entered; return 0. */
int content_open(void *argument)
{
	struct content *content = argument;

	for (size_t i = 0; i < content->count; i++) {
		content->files[i] = open(content->paths[i], O_RDONLY | O_NONBLOCK | O_CLOEXEC);
		if (content->files[i] < 0)
			content->files[i] = -errno;
	}
	return 0;
}

/* Return the descriptor that has to be writable. */
int content_waits_for(const struct content *content)
{
	return content->to;
}

/* Write what there is to write; return whether all has been done. */
bool content_moves(struct content *content)
{
	for (int pieces = 0; pieces < MOST_AT_ONCE; pieces++) {
		ssize_t moved;

		if (content->from < content->end) {
			moved = write(content->to, content->bytes + content->from, content->end - content->from);
			if (moved < 0 && errno == EAGAIN)
				return false;
			if (moved < 0) {
				content->error = errno;
				return true;
			}
			content->from += moved;
			continue;
		}
		if (content->next == content->count)
			return true;
		if (content->files[content->next] < 0) {
			content->error = -content->files[content->next];
			return true;
		}
		moved = read(content->files[content->next], content->bytes, sizeof(content->bytes));
		if (moved < 0) {
			content->error = errno;
			return true;
		}
		content->from = 0;
		content->end = moved;
		if (moved == 0)
			content->next++;
	}
	return false;
}

/* Return 0, or the errno of what has failed. */
int content_close(struct content *content)
{
	int error = content->error;

	for (size_t i = 0; i < content->count; i++)
		if (content->files[i] >= 0)
			close(content->files[i]);
	close(content->to);
	free(content);
	return error;
}
