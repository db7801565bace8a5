/* SPDX-License-Identifier: GPL-2.0-only */
/* The parts of the guest's first process. Its orders are in its environment: see init.c. */
#ifndef SKBLAB_INIT_H
#define SKBLAB_INIT_H

#include <poll.h>
#include <stdbool.h>
#include <stddef.h>

/* tell.c: messages on the console, text into files, descriptors that nobody waits for */
void complain(const char *what);
void do_not_wait(int fd);
int put(const char *path, const char *text);

/* link.c: the links' addresses */
void set_up_links(void);
void set_up_link(char *words);
void set_up_namespace(void);

/* nodes.c: network namespaces in which programs run */
void set_up_nodes(void);
void name_nodes(const char *root);
int enter_node(const char *name);

/* modules.c: the user's modules */
void load_modules(void);

/* root.c: the root file system of the guest's programs */
struct root {
	const char *at; /* where it is mounted; NULL: no root */
	const char *init; /* its own init, to be executed; NULL: we stay */
};
struct root mount_root(void);
void hand_over(const struct root *root);
void keep_consoles(void);

/* exec.c: commands for the host */
void serve_host(const struct root *root);

/* terminal.c: a terminal for a command */
struct carried {
	size_t from, to;
	char bytes[4096];
};
struct terminal {
	int master, command; /* its two sides */
	int input, output; /* the host's pipes */
	bool hung_up;
	struct carried typed, shown;
};
#define TERMINAL_POLLS 3
struct terminal *terminal_make(int input, int output);
int terminal_open(void *terminal);
void terminal_resize(const struct terminal *terminal, unsigned int rows, unsigned int columns);
int terminal_wants(const struct terminal *terminal, struct pollfd *polls);
void terminal_moves(struct terminal *terminal, const struct pollfd *polls);
bool terminal_drained(struct terminal *terminal);
void terminal_close(struct terminal *terminal);

#endif
