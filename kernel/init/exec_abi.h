/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Messages between skblab and the guest's server of commands: one connection per command, one message per datagram, in
 * host byte order. The other side is src/skblab/guest/exec.py.
 */
#ifndef SKBLAB_EXEC_ABI_H
#define SKBLAB_EXEC_ABI_H

#include <stdint.h>

#define EXEC_MESSAGE_BYTES (192 * 1024) /* fits into a Unix socket's default buffer (net.core.wmem_default) */

enum exec_kind {
	/* From the host. START carries the command's stdin, stdout, stderr; with a terminal, only input and output. */
	EXEC_START = 1,
	EXEC_SIGNAL, /* value: the signal's number, for the command's process group */
	EXEC_WINDOW, /* rows, columns */
	/* From the guest: STARTED or FAILED, then ENDED. */
	EXEC_STARTED, /* value: its pid */
	EXEC_FAILED, /* value: errno of step */
	EXEC_ENDED, /* value: exit status; minus the signal that ended it */
	/* From the host, in place of START: the argc words are paths, whose content comes to stdout. ENDED has an errno. */
	EXEC_READ,
};

enum exec_step { /* what failed */
	EXEC_STEP_PROGRAM,
	EXEC_STEP_NO_PROGRAMS, /* the built-in root has no programs */
	EXEC_STEP_DIRECTORY,
	EXEC_STEP_ROOT,
	EXEC_STEP_TERMINAL,
	EXEC_STEP_FORK,
	EXEC_STEP_REQUEST,
	EXEC_STEP_NODE,
};

struct exec_message {
	uint32_t kind;
	int32_t value;
	uint32_t step;
	uint32_t terminal; /* whether the command gets a terminal, of rows x columns */
	uint32_t rows, columns;
	uint32_t stays; /* whether it outlives the connection */
	uint32_t argc, envc;
	char text[]; /* node (or ""), directory (or ""), argc words, envc NAME=VALUE, each NUL-terminated */
};

#endif
