/* SPDX-License-Identifier: GPL-2.0-only */
/* The rooms of the guest's first process. Its orders are in its environment: see init.c. */
#ifndef SKBLAB_INIT_H
#define SKBLAB_INIT_H

#include <signal.h>
#include <stdbool.h>

/* tell.c: words on the console, words into files */
void complain(const char *what);
int put(const char *path, const char *text);

/* link.c: addresses, so that the guest can be reached */
void set_up_link(void);

/* root.c: the files that the guest's programs see, and the programs */
struct root {
	const char *at; /* where it is mounted; NULL: there is none */
	const char *init; /* its own first process, to be handed over to; NULL: we stay */
};
struct root mount_root(void);
void hand_over(const struct root *root);
void keep_console(sigset_t interrupt);
void run_commands(sigset_t interrupt);

#endif
