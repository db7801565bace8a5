/* SPDX-License-Identifier: GPL-2.0-only */
/* What the host can have done in the guest: the parts of exec.c. */
#ifndef SKBLAB_EXEC_H
#define SKBLAB_EXEC_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#include "exec_abi.h"

/* command.c: start one */
struct start {
	int root; /* its "/" */
	const char *node, *directory, *home;
	char **words; /* argc words, then envc NAME=VALUE */
	size_t argc, envc;
	const int *standard; /* its stdin, stdout, stderr */
	bool terminal; /* these are one */
	int error; /* on return: 0, or an errno, and of which step */
	enum exec_step step;
};
pid_t command_start(struct start *start);

/* inside.c: enter the guest's root, or have something done there */
int enter(int root, const char *node, enum exec_step *step);
int do_inside(int root, const char *node, int (*what)(void *), void *argument, enum exec_step *step);

/* content.c: of files, one behind another, for one of the host's pipes */
struct content;
struct content *content_make(char **paths, size_t count, int to);
int content_open(void *content);
int content_waits_for(const struct content *content);
bool content_moves(struct content *content);
int content_close(struct content *content);

#endif
