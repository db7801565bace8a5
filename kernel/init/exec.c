// SPDX-License-Identifier: GPL-2.0-only
/*
 * Run commands for the host. A server, a child of init, forks a keeper for each command. The keeper starts the command
 * in the guest's root, passes signals on to it, and reports how it ended; if the host hangs up, the command gets
 * SIGHUP. The command reads and writes the host's own pipes (kernel/agent/hostfile.c): only a terminal's bytes are
 * copied (terminal.c).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../agent/hostfile_abi.h"
#include "exec_abi.h"
#include "init.h"

#define PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#define BEFORE_ARGV 2 /* words: node, directory */

struct failure {
	int error;
	enum exec_step step;
};

static void tell(int connection, enum exec_kind kind, int value, enum exec_step step)
{
	struct exec_message message = { .kind = kind, .value = value, .step = step };

	if (write(connection, &message, sizeof(message)) < 0)
		return; /* the host has hung up */
}

/* Split a request's text into its words; return false if some are missing. */
static bool split(const struct exec_message *request, size_t bytes, char **words)
{
	char *next = (char *)request->text, *end = (char *)request + bytes;

	if (bytes <= sizeof(*request) || end[-1])
		return false;
	for (size_t i = 0; i < BEFORE_ARGV + request->argc + request->envc; i++) {
		if (next >= end)
			return false;
		words[i] = next;
		next += strlen(next) + 1;
	}
	return request->argc > 0;
}

static int enter_root(int root)
{
	return fchdir(root) < 0 || chroot(".") < 0 ? -1 : 0;
}

/* Execute the command; on failure, write why to *failed*, which execve(2) closes. */
static void become(const struct exec_message *request, char **words, const int *standard, int failed, const char *home)
{
	char **argv = calloc(request->argc + 1, sizeof(*argv)), **envp = calloc(request->envc + 1, sizeof(*envp));
	struct failure failure = { 0 };
	sigset_t none;

	for (uint32_t i = 0; argv && i < request->argc; i++)
		argv[i] = words[BEFORE_ARGV + i];
	for (uint32_t i = 0; envp && i < request->envc; i++)
		envp[i] = words[BEFORE_ARGV + request->argc + i];
	setsid();
	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGCHLD, SIG_DFL);
	signal(SIGPIPE, SIG_DFL);
	if (request->terminal && ioctl(standard[0], TIOCSCTTY, 0) < 0)
		failure = (struct failure){ errno, EXEC_STEP_TERMINAL };
	for (int i = 0; i < 3; i++)
		dup2(standard[i], i);
	environ = envp;
	setenv("PATH", PATH, 0);
	setenv("HOME", home, 0);
	if (!failure.error && enter_node(words[0]) < 0)
		failure = (struct failure){ errno, EXEC_STEP_NODE };
	if (!failure.error && *words[1] && chdir(words[1]) < 0)
		failure = (struct failure){ errno, EXEC_STEP_DIRECTORY };
	else if (!*words[1] && chdir(getenv("HOME")) < 0 && chdir("/") < 0)
		failure = (struct failure){ errno, EXEC_STEP_DIRECTORY };
	if (!failure.error) {
		execvp(argv[0], argv);
		failure = (struct failure){ errno, access("/agent.ko", F_OK) ? EXEC_STEP_PROGRAM : EXEC_STEP_NO_PROGRAMS };
	}
	if (write(failed, &failure, sizeof(failure)) < 0)
		_exit(126);
	_exit(127);
}

static void no_action(int number)
{
	(void)number;
}

/* Carry out the host's orders, and copy the terminal's bytes, until the command has ended; return its status. */
static int keep(int connection, pid_t command, bool stays, struct terminal *terminal)
{
	struct pollfd watched[1 + TERMINAL_POLLS] = { { .fd = connection, .events = POLLIN } };
	sigset_t none;
	int status;

	sigemptyset(&none);
	while (waitpid(command, &status, WNOHANG) == 0) {
		int count = 1 + (terminal ? terminal_wants(terminal, watched + 1) : 0);

		if (ppoll(watched, count, NULL, &none) < 0)
			continue; /* SIGCHLD, which is unblocked only here */
		if (terminal)
			terminal_moves(terminal, watched + 1);
		if (watched[0].revents) {
			struct exec_message order;

			if (read(connection, &order, sizeof(order)) < (ssize_t)sizeof(order)) {
				if (!stays) {
					kill(-command, SIGHUP);
					kill(-command, SIGCONT);
				}
				watched[0].fd = -1;
			} else if (order.kind == EXEC_SIGNAL) {
				kill(-command, order.value);
			} else if (order.kind == EXEC_WINDOW && terminal) {
				terminal_resize(terminal, order.rows, order.columns);
			}
		}
	}
	if (terminal)
		terminal_drain(terminal);
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

/* Write the content of a file; return 0 or an errno. */
static int write_content(const char *path, int to)
{
	static char bytes[64 * 1024];
	int from = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t got;

	if (from < 0)
		return errno;
	while ((got = read(from, bytes, sizeof(bytes))) > 0)
		for (ssize_t written, done = 0; done < got; done += written)
			if ((written = write(to, bytes + done, got - done)) < 0)
				return errno;
	if (got < 0)
		return errno;
	close(from);
	return 0;
}

/* Write the content of files of a node, one behind another: without a program, and without a process for it. */
static void serve_content(int connection, uint32_t count, char **words, const int *standard)
{
	int error = 0;

	if (enter_node(words[0]) < 0) {
		tell(connection, EXEC_FAILED, errno, EXEC_STEP_NODE);
		return;
	}
	tell(connection, EXEC_STARTED, getpid(), 0);
	for (uint32_t i = 0; i < count && !error; i++)
		error = write_content(words[BEFORE_ARGV + i], standard[1]);
	tell(connection, EXEC_ENDED, error, 0);
}

/* Run one command for the host at the other end of a connection. */
static void serve_command(int connection, int root, const char *home)
{
	static char bytes[EXEC_MESSAGE_BYTES];
	struct hostfile_message received = { .data = (uintptr_t)bytes, .bytes = sizeof(bytes) };
	const struct exec_message *request = (struct exec_message *)bytes;
	struct failure failure = { 0 };
	struct terminal terminal;
	sigset_t ended;
	char **words;
	int standard[3], failed[2];
	int got = ioctl(connection, HOSTFILE_RECEIVE, &received);
	pid_t command;

	if (got <= 0)
		return; /* the host has hung up without a request */
	words = got < (int)sizeof(*request) ? NULL : calloc(BEFORE_ARGV + request->argc + request->envc, sizeof(*words));
	if (!words || !split(request, got, words) || received.count != (request->terminal ? 2u : 3u)) {
		tell(connection, EXEC_FAILED, EINVAL, EXEC_STEP_REQUEST);
		return;
	}
	if (enter_root(root) < 0) {
		tell(connection, EXEC_FAILED, errno, EXEC_STEP_ROOT);
		return;
	}
	for (uint32_t i = 0; i < received.count; i++) {
		standard[i] = received.fds[i];
		if (standard[i] < 0) {
			tell(connection, EXEC_FAILED, -standard[i], EXEC_STEP_REQUEST);
			return;
		}
	}
	if (request->terminal) {
		if (terminal_open(&terminal, standard[0], standard[1], request->rows, request->columns) < 0) {
			tell(connection, EXEC_FAILED, errno, EXEC_STEP_TERMINAL);
			return;
		}
		standard[0] = standard[1] = standard[2] = terminal.command;
	}
	signal(SIGPIPE, SIG_IGN);
	if (request->kind == EXEC_READ) {
		serve_content(connection, request->argc, words, standard);
		return;
	}
	sigemptyset(&ended);
	sigaddset(&ended, SIGCHLD);
	sigprocmask(SIG_BLOCK, &ended, NULL);
	signal(SIGCHLD, no_action);
	/* vfork(2): an address space is a process of the host's, and the command gets its own by execve(2). */
	if (pipe2(failed, O_CLOEXEC) < 0 || (command = vfork()) < 0) {
		tell(connection, EXEC_FAILED, errno, EXEC_STEP_FORK);
		return;
	}
	if (command == 0)
		become(request, words, standard, failed[1], home);
	/* Only the command keeps its pipes: they end with it. */
	close(failed[1]);
	for (int i = 0; i < (request->terminal ? 1 : 3); i++)
		close(standard[i]);
	if (read(failed[0], &failure, sizeof(failure)) == sizeof(failure)) {
		tell(connection, EXEC_FAILED, failure.error, failure.step);
		return;
	}
	close(failed[0]);
	tell(connection, EXEC_STARTED, command, 0);
	tell(connection, EXEC_ENDED, keep(connection, command, request->stays, request->terminal ? &terminal : NULL), 0);
}

/* Start the server, if the kernel can pass it files of the host. *root* is the commands' "/". */
void serve_commands(const struct root *root)
{
	int control = open("/proc/" HOSTFILE_PROC, O_RDONLY | O_CLOEXEC);
	int requests = ioctl(control, HOSTFILE_REQUESTS);
	int at = open(root->at ? root->at : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* stays valid when it is moved */
	pid_t server = requests < 0 || at < 0 ? -1 : fork();

	if (server < 0)
		complain("cannot serve commands");
	close(control);
	if (server) {
		close(requests);
		close(at);
		return;
	}
	signal(SIGCHLD, SIG_IGN); /* keepers are reaped by the kernel */
	for (;;) {
		char byte;
		struct hostfile_message request = { .data = (uintptr_t)&byte, .bytes = 1 };
		int got = ioctl(requests, HOSTFILE_RECEIVE, &request);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			_exit(1);
		if (fork() == 0) {
			close(requests);
			serve_command(request.fds[0], at, root->init ? "/root" : "/tmp");
			_exit(0);
		}
		close(request.fds[0]);
	}
}
