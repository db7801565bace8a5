// SPDX-License-Identifier: GPL-2.0-only
/* A pseudo-terminal for a command: its keeper copies the bytes between it and the host's pipes. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include "init.h"

static void do_not_wait(int fd)
{
	fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

/* Open a new pair in the entered root; mount /dev/pts if the root's own init has not done it yet. */
int terminal_open(struct terminal *terminal, int input, int output, unsigned int rows, unsigned int columns)
{
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC), unlocked = 0;

	if (master < 0) {
		mkdir("/dev/pts", 0755);
		if (mount("devpts", "/dev/pts", "devpts", 0, "mode=0620,ptmxmode=0666") < 0)
			return -1;
		master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	}
	if (master < 0 || ioctl(master, TIOCSPTLCK, &unlocked) < 0)
		return -1;
	*terminal = (struct terminal){ .master = master, .input = input, .output = output };
	terminal->command = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC);
	terminal_resize(terminal, rows, columns);
	do_not_wait(master);
	do_not_wait(input);
	return terminal->command < 0 ? -1 : 0;
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

/* The command has ended: copy its last output. */
void terminal_drain(struct terminal *terminal)
{
	ssize_t got;

	do {
		while (terminal->shown.to)
			carry_out(&terminal->shown, terminal->output);
		got = read(terminal->master, terminal->shown.bytes, sizeof(terminal->shown.bytes));
		terminal->shown.to = got > 0 ? got : 0;
	} while (got > 0);
	close(terminal->output);
}
