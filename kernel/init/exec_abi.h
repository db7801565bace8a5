/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A command in the guest, as skblab asks for it: one connection a command, one message a datagram, in this machine's
 * byte order. src/skblab/guest/exec.py is the other side.
 */
#ifndef SKBLAB_EXEC_ABI_H
#define SKBLAB_EXEC_ABI_H

#include <stdint.h>

#define EXEC_MESSAGE_BYTES (192 * 1024) /* a Unix socket's room, by default (net.core.wmem_default) */

enum exec_kind {
	/* From the host. With START come the command's stdin, stdout, stderr; with a terminal, its input and its output. */
	EXEC_START = 1,
	EXEC_SIGNAL, /* value: its number; it is for the command's process group */
	EXEC_WINDOW, /* rows, columns */
	/* From the guest: STARTED or FAILED, then ENDED. */
	EXEC_STARTED, /* value: its pid */
	EXEC_FAILED, /* value: errno of step */
	EXEC_ENDED, /* value: exit status; minus the signal that ended it */
};

enum exec_step { /* what failed */
	EXEC_STEP_PROGRAM,
	EXEC_STEP_NO_PROGRAMS, /* it is not there, and nor is any other: the built-in root */
	EXEC_STEP_DIRECTORY,
	EXEC_STEP_ROOT,
	EXEC_STEP_TERMINAL,
	EXEC_STEP_FORK,
	EXEC_STEP_REQUEST,
};

struct exec_message {
	uint32_t kind;
	int32_t value;
	uint32_t step;
	uint32_t terminal; /* whether there is to be one, of that size */
	uint32_t rows, columns;
	uint32_t stays; /* whether it outlives the connection */
	uint32_t argc, envc;
	char text[]; /* directory (or nothing), argc words, envc NAME=VALUE, each with its NUL */
};

#endif
