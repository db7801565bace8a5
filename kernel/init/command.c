// SPDX-License-Identifier: GPL-2.0-only
/* Start a command for the host, in the guest's root. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "exec.h"
#include "init.h"

#define PATH "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define HOME "HOME="

static bool has(char *const *pairs, size_t count, const char *name)
{
	for (size_t i = 0; i < count; i++)
		if (strncmp(pairs[i], name, strlen(name)) == 0)
			return true;
	return false;
}

static char *joined(const char *name, const char *value)
{
	char *pair = malloc(strlen(name) + strlen(value) + 1);

	return pair ? strcat(strcpy(pair, name), value) : NULL;
}

static int failed(struct start *start, enum exec_step step)
{
	start->error = errno;
	start->step = step;
	return -1;
}

static int set_up(struct start *start)
{
	const char *directory = *start->directory ? start->directory : getenv("HOME");

	if (enter(start->root, start->node, &start->step) < 0)
		return failed(start, start->step);
	if (start->terminal && ioctl(start->standard[0], TIOCSCTTY, 0) < 0)
		return failed(start, EXEC_STEP_TERMINAL);
	for (int i = 0; i < 3; i++)
		dup2(start->standard[i], i);
	if (chdir(directory) < 0 && (*start->directory || chdir("/") < 0))
		return failed(start, EXEC_STEP_DIRECTORY);
	return 0;
}

/* Execute the command, or write why not. This process shares its parent's memory. */
static void become(struct start *start, char **argv)
{
	sigset_t none;

	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	if (set_up(start) == 0) {
		execvp(argv[0], argv);
		failed(start, EXEC_STEP_PROGRAM);
		if (access("/agent.ko", F_OK) == 0)
			start->step = EXEC_STEP_NO_PROGRAMS;
	}
	_exit(127);
}

/* vfork(2): the command gets an address space of its own by execve(2). */
static __attribute__((noinline)) pid_t spawn(struct start *start, char **argv)
{
	pid_t pid = vfork();

	if (pid == 0)
		become(start, argv);
	return pid;
}

/* Start a command; return its pid, or its failure in *start*. */
pid_t command_start(struct start *start)
{
	char **argv = calloc(start->argc + 1, sizeof(*argv)), **envp = calloc(start->envc + 3, sizeof(*envp));
	char **pairs = start->words + start->argc, **own = environ;
	char *home = joined(HOME, start->home);
	size_t count = start->envc;
	pid_t pid = -1;

	errno = ENOMEM;
	if (argv && envp && home) {
		memcpy(argv, start->words, start->argc * sizeof(*argv));
		memcpy(envp, pairs, count * sizeof(*envp));
		if (!has(pairs, start->envc, "PATH="))
			envp[count++] = PATH;
		if (!has(pairs, start->envc, HOME))
			envp[count++] = home;
		environ = envp; /* in which execvp(3) looks for PATH */
		pid = spawn(start, argv);
		environ = own;
	}
	if (pid < 0)
		failed(start, EXEC_STEP_FORK);
	free(argv);
	free(envp);
	free(home);
	return pid;
}
