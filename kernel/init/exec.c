// SPDX-License-Identifier: GPL-2.0-only
/*
 * Serve the host: run commands in the guest's root (command.c), pass signals on to them, report how they ended; read
 * files (content.c). One process serves all, because on UML an address space is a process of the host's, and each costs
 * milliseconds. It is init itself, or a child of it where a disk has an init of its own. So only serve() waits.
 *
 * The command reads and writes the host's own pipes (kernel/agent/hostfile.c): only a terminal's bytes are copied
 * (terminal.c). If the host hangs up, the command gets SIGHUP.
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
#include "exec.h"
#include "init.h"

#define BEFORE_ARGV 2 /* words: node, directory */
#define POLLS (1 + TERMINAL_POLLS) /* of one job, at most: its connection, and its terminal or its content */

/* What one connection of the host's is for. It begins without a command and without a content. */
struct job {
	struct job *next;
	int connection; /* -1: the host has hung up */
	pid_t command;
	bool stays, ended;
	int status;
	struct terminal *terminal;
	struct content *content;
	const struct pollfd *polls;
};

static struct job *jobs;
static int guest_root;
static const char *home;

static void tell(const struct job *job, enum exec_kind kind, int value, enum exec_step step)
{
	struct exec_message message = { .kind = kind, .value = value, .step = step };

	if (write(job->connection, &message, sizeof(message)) < 0)
		return; /* the host has hung up */
}

/* Close a job's files, and have it forgotten. */
static void end(struct job *job)
{
	if (job->terminal)
		terminal_close(job->terminal);
	if (job->content)
		content_close(job->content);
	free(job->terminal);
	close(job->connection);
	job->connection = -1;
	job->terminal = NULL;
	job->content = NULL;
	job->command = 0;
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

/* Give a job its terminal; *standard* has the host's pipes, then the terminal. Return 0, or an errno. */
static int make_terminal(struct job *job, const struct exec_message *request, int *standard, enum exec_step *step)
{
	int error;

	job->terminal = terminal_make(standard[0], standard[1]);
	if (!job->terminal) {
		close(standard[1]);
		return ENOMEM;
	}
	error = do_inside(guest_root, "", terminal_open, job->terminal, step);
	standard[0] = standard[1] = standard[2] = job->terminal->command;
	if (!error)
		terminal_resize(job->terminal, request->rows, request->columns);
	return error;
}

/* Start the command. */
static void start(struct job *job, const struct exec_message *request, char **words, int *standard)
{
	struct start start = {
		.root = guest_root,
		.node = words[0],
		.directory = words[1],
		.home = home,
		.words = words + BEFORE_ARGV,
		.argc = request->argc,
		.envc = request->envc,
		.standard = standard,
		.terminal = request->terminal,
		.step = EXEC_STEP_TERMINAL,
	};

	if (request->terminal)
		start.error = make_terminal(job, request, standard, &start.step);
	if (!start.error)
		job->command = command_start(&start);
	for (int i = 0; i < (request->terminal ? 1 : 3); i++)
		close(standard[i]); /* only the command keeps its pipes: they end with it */
	if (start.error) {
		tell(job, EXEC_FAILED, start.error, start.step);
		end(job);
		return;
	}
	job->stays = request->stays;
	tell(job, EXEC_STARTED, job->command, 0);
}

/* Begin to read files. */
static void read_files(struct job *job, const struct exec_message *request, char **words, const int *standard)
{
	enum exec_step step = EXEC_STEP_FORK;
	int error = ENOMEM;

	close(standard[0]);
	close(standard[2]);
	job->content = content_make(words + BEFORE_ARGV, request->argc, standard[1]);
	if (job->content)
		error = do_inside(guest_root, words[0], content_open, job->content, &step);
	else
		close(standard[1]);
	if (error) {
		tell(job, EXEC_FAILED, error, step);
		end(job);
		return;
	}
	tell(job, EXEC_STARTED, getpid(), 0);
}

/* Take a job's request. */
static void begin(struct job *job)
{
	static char bytes[EXEC_MESSAGE_BYTES];
	struct hostfile_message received = { .data = (uintptr_t)bytes, .bytes = sizeof(bytes) };
	const struct exec_message *request = (struct exec_message *)bytes;
	int got = ioctl(job->connection, HOSTFILE_RECEIVE, &received);
	char **words = NULL;
	int error = 0;

	if (got <= 0) { /* the host has hung up without a request */
		end(job);
		return;
	}
	if (got >= (int)sizeof(*request))
		words = calloc(BEFORE_ARGV + (size_t)request->argc + request->envc, sizeof(*words));
	if (!words || !split(request, got, words) || received.count != (request->terminal ? 2u : 3u))
		error = EINVAL;
	for (uint32_t i = 0; i < received.count; i++)
		if (received.fds[i] < 0)
			error = -received.fds[i];
	if (error) {
		for (uint32_t i = 0; i < received.count; i++)
			close(received.fds[i]);
		tell(job, EXEC_FAILED, error, EXEC_STEP_REQUEST);
		end(job);
	} else if (request->kind == EXEC_READ && !request->terminal) {
		read_files(job, request, words, received.fds);
	} else {
		start(job, request, words, received.fds);
	}
	free(words);
}

/* Carry out the host's next order. */
static void obey(struct job *job)
{
	struct exec_message order;

	if (read(job->connection, &order, sizeof(order)) < (ssize_t)sizeof(order)) {
		close(job->connection);
		job->connection = -1;
		if (job->content || job->ended) { /* nobody reads the rest */
			end(job);
		} else if (!job->stays) {
			kill(-job->command, SIGHUP);
			kill(-job->command, SIGCONT);
		}
	} else if (order.kind == EXEC_SIGNAL && job->command && !job->ended) {
		kill(-job->command, order.value);
	} else if (order.kind == EXEC_WINDOW && job->terminal) {
		terminal_resize(job->terminal, order.rows, order.columns);
	}
}

/* Do what can be done for a job now. */
static void move(struct job *job)
{
	if (job->polls[0].fd >= 0 && job->polls[0].revents) {
		if (job->command || job->content)
			obey(job);
		else
			begin(job);
	} else if (job->terminal && !job->ended) {
		terminal_moves(job->terminal, job->polls + 1);
	}
	if (job->content && content_moves(job->content)) {
		int error = content_close(job->content);

		job->content = NULL;
		tell(job, EXEC_ENDED, error, 0);
		end(job);
	}
	if (job->ended && (!job->terminal || terminal_drained(job->terminal))) {
		if (job->terminal)
			terminal_close(job->terminal); /* the host sees its output's end first */
		tell(job, EXEC_ENDED, job->status, 0);
		end(job);
	}
}

/* Note which commands have ended. As process 1, children of others come here, too. */
static void reap(void)
{
	int status;
	pid_t pid;

	while ((pid = waitpid(-1, &status, WNOHANG)) > 0)
		for (struct job *job = jobs; job; job = job->next)
			if (job->command == pid) {
				job->ended = true;
				job->status = WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
			}
}

static bool is_over(const struct job *job)
{
	return job->connection < 0 && !job->command;
}

/* Forget the jobs that are over; return how many are left. */
static size_t tidy(void)
{
	struct job **at = &jobs;
	size_t count = 0;

	while (*at) {
		struct job *job = *at;

		if (is_over(job)) {
			*at = job->next;
			free(job);
		} else {
			at = &job->next;
			count++;
		}
	}
	return count;
}

/* Take the next connection. Return false where there will be none. */
static bool take(int requests)
{
	char byte;
	struct hostfile_message request = { .data = (uintptr_t)&byte, .bytes = 1 };
	int got = ioctl(requests, HOSTFILE_RECEIVE, &request);
	struct job *job;

	if (got <= 0)
		return got < 0 && errno == EINTR;
	if (!request.count)
		return true;
	job = calloc(1, sizeof(*job));
	if (!job) {
		close(request.fds[0]);
		return true;
	}
	job->connection = request.fds[0];
	job->next = jobs;
	jobs = job;
	return true;
}

/* Fill in what poll(2) waits for; return how many. */
static size_t wants(struct job *job, struct pollfd *polls)
{
	job->polls = polls;
	polls[0] = (struct pollfd){ .fd = job->connection, .events = POLLIN };
	if (job->terminal && !job->ended)
		return 1 + terminal_wants(job->terminal, polls + 1);
	if (!job->terminal && !job->content)
		return 1;
	polls[1] = (struct pollfd){
		.fd = job->terminal ? job->terminal->output : content_waits_for(job->content),
		.events = POLLOUT,
	};
	return 2;
}

static void no_action(int number)
{
	(void)number;
}

static int serve(int requests)
{
	struct pollfd *polls = NULL;
	sigset_t ended, none;
	bool open = true;

	sigemptyset(&none);
	sigemptyset(&ended);
	sigaddset(&ended, SIGCHLD);
	sigprocmask(SIG_BLOCK, &ended, NULL); /* it comes only while serve() waits */
	signal(SIGCHLD, no_action);
	signal(SIGPIPE, SIG_IGN);
	for (;;) {
		struct pollfd *more = realloc(polls, (1 + POLLS * tidy()) * sizeof(*polls));
		size_t count = 1;

		if (!more) {
			complain("no memory for more commands");
			return 1;
		}
		polls = more;
		polls[0] = (struct pollfd){ .fd = open ? requests : -1, .events = POLLIN };
		for (struct job *job = jobs; job; job = job->next)
			count += wants(job, polls + count);
		if (ppoll(polls, count, NULL, &none) < 0)
			for (size_t i = 0; i < count; i++)
				polls[i].revents = 0; /* a command has ended */
		reap();
		for (struct job *job = jobs; job; job = job->next)
			move(job);
		if (polls[0].revents)
			open = take(requests);
	}
}

/*
 * Serve the host, if the kernel can pass files of it. *root* is the commands' "/". Return where it has an init of its
 * own: then a child serves.
 */
void serve_host(const struct root *root)
{
	int control = open("/proc/" HOSTFILE_PROC, O_RDONLY | O_CLOEXEC);
	int requests = ioctl(control, HOSTFILE_REQUESTS);

	close(control);
	guest_root = open(root->at ? root->at : "/", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* valid when it is moved */
	home = root->init ? "/root" : "/tmp";
	if (requests < 0 || guest_root < 0)
		complain("cannot serve the host");
	else if (!root->init)
		serve(requests);
	else if (fork() == 0)
		_exit(serve(requests));
	close(requests);
	close(guest_root);
}
