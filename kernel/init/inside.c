// SPDX-License-Identifier: GPL-2.0-only
/* Do something in the guest's root, and on a node, while this process stays where it is: others look at process 1. */
#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <unistd.h>

#include "exec.h"
#include "init.h"

struct inside {
	int root;
	const char *node;
	int (*work)(void *);
	void *argument;
	enum exec_step *step;
	volatile int error;
};

/* Enter the root and a node; on failure, write of which step to *step*. */
int enter(int root, const char *node, enum exec_step *step)
{
	if (fchdir(root) < 0 || chroot(".") < 0) {
		*step = EXEC_STEP_ROOT;
		return -1;
	}
	if (enter_node(node) < 0) {
		*step = EXEC_STEP_NODE;
		return -1;
	}
	return 0;
}

static int work(void *argument)
{
	struct inside *inside = argument;

	inside->error = enter(inside->root, inside->node, inside->step) < 0 ? errno : inside->work(inside->argument);
	return 0;
}

/*
 * Have a child do it that shares this process's memory and descriptors; this one waits, as in vfork(2). Return 0, or an
 * errno; then, if the root or the node could not be entered, that is in *step*.
 */
int do_inside(int root, const char *node, int (*what)(void *), void *argument, enum exec_step *step)
{
	static char stack[32 * 1024] __attribute__((aligned(16)));
	struct inside inside = {
		.root = root, .node = node, .work = what, .argument = argument, .step = step, .error = EINTR,
	};

	if (clone(work, stack + sizeof(stack), CLONE_VM | CLONE_FILES | CLONE_VFORK | SIGCHLD, &inside) < 0) {
		*step = EXEC_STEP_FORK;
		return errno;
	}
	return inside.error;
}
