// SPDX-License-Identifier: GPL-2.0-only
/* A pseudo-terminal for a command: the server copies the bytes between it and the host's pipes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

/* Return a terminal that has still to be opened, for two of the host's pipes, which it closes with itself; or NULL. */
struct terminal *terminal_make(int input, int output)
{
	struct terminal *terminal = calloc(1, sizeof(*terminal));

	if (!terminal)
		return NULL;
	terminal->input = input;
	terminal->output = output;
	terminal->master = terminal->command = -1;
	do_not_wait(input);
	do_not_wait(output);
	return terminal;
}

/*
 * Open a new pair, in the root that was entered; mount /dev/pts if the root's own init has not done it yet. Return 0, or
 * an errno.
 */
int terminal_open(void *argument)
{
	struct terminal *terminal = argument;
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlocked = 0;

	if (master < 0) {
		mkdir("/dev/pts", 0755);
		if (mount("devpts", "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666") < 0)
			return errno;
		master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	}
	terminal->master = master;
	if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) < 0)
		return errno;
	terminal->command = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	do_not_wait(master);
	return terminal->command < 0 ? errno : 0;
}

void terminal_resize(const struct terminal *terminal, unsigned int rows, unsigned int columns)
{
	struct winsize size = { .ws_row = rows, .ws_col = columns };

	ioctl(terminal->master, TIOCSWINSZ, &size);
}

static void carry_out(struct carried *carried, int to)
{
	ssize_t put = write(to, carried->bytes + carried->from, carried->to - carried->from);

	if (put < 0 && errno == EAGAIN)
		return;
	/* The reader is gone: discard the rest. */
	carried->from = put < 0 ? carried->to : carried->from + put;
	if (carried->from == carried->to)
		carried->from = carried->to = 0;
}

/* Fill in what poll(2) waits for; return how many. Bytes are read only after the last ones were written. */
int terminal_wants(const struct terminal *terminal, struct pollfd *polls)
{
	bool typed = terminal->typed.to, shown = terminal->shown.to;

	polls[0] = (struct pollfd){ .fd = typed ? -1 : terminal->input, .events = POLLIN };
	polls[1] = (struct pollfd){
		.fd = terminal->hung_up && !typed ? -1 : terminal->master,
		.events = (typed ? POLLOUT : 0) | (shown ? 0 : POLLIN),
	};
	polls[2] = (struct pollfd){ .fd = shown ? terminal->output : -1, .events = POLLOUT };
	return TERMINAL_POLLS;
}

void terminal_moves(struct terminal *terminal, const struct pollfd *polls)
{
	ssize_t got;

	if (polls[0].fd >= 0 && polls[0].revents) {
		got = read(terminal->input, terminal->typed.bytes, sizeof(terminal->typed.bytes));
		if (got > 0)
			terminal->typed.to = got;
		else if (got == 0)
			terminal->input = -1; /* end of the input */
	}
	if (polls[1].fd >= 0 && polls[1].revents) {
		if (!terminal->shown.to) {
			got = read(terminal->master, terminal->shown.bytes, sizeof(terminal->shown.bytes));
			if (got > 0)
				terminal->shown.to = got;
			else if (got == 0 || errno != EAGAIN)
				terminal->hung_up = true; /* the command has closed its terminal, but still runs */
		}
		if (terminal->typed.to)
			carry_out(&terminal->typed, terminal->master);
	}
	if (polls[2].fd >= 0 && polls[2].revents)
		carry_out(&terminal->shown, terminal->output);
}

/* The command has ended: copy its last output. Return whether all of it was copied. */
bool terminal_drained(struct terminal *terminal)
{
	for (;;) {
		ssize_t got;

		if (terminal->shown.to)
			carry_out(&terminal->shown, terminal->output);
		if (terminal->shown.to)
			return false;
		got = read(terminal->master, terminal->shown.bytes, sizeof(terminal->shown.bytes));
		if (got <= 0)
			return true;
		terminal->shown.to = got;
	}
}

void terminal_close(struct terminal *terminal)
{
	int *files[] = { &terminal->master, &terminal->input, &terminal->output };

	for (size_t i = 0; i < sizeof(files) / sizeof(*files); i++) {
		close(*files[i]);
		*files[i] = -1;
	}
}
