/* SPDX-License-Identifier: GPL-2.0-only */
/* How init takes descriptors of the host's: ioctl(2) on /proc/skblab, and on what it gives. */
#ifndef SKBLAB_HOSTFILE_ABI_H
#define SKBLAB_HOSTFILE_ABI_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define HOSTFILE_PROC "skblab"
#define HOSTFILE_FDS 3

struct hostfile_message { /* one datagram, and the descriptors beside it */
	__u64 data; /* where the datagram goes */
	__u32 bytes; /* room there */
	__u32 count; /* of fds, on return */
	__s32 fds[HOSTFILE_FDS]; /* in the guest's numbers; each is closed on execve(2) */
	__u32 unused;
};

/* On /proc/skblab: return a new descriptor of the socket by which requests come. */
#define HOSTFILE_REQUESTS _IO('k', 1)
/* On a socket: wait for a datagram; return its size, 0 at the end. */
#define HOSTFILE_RECEIVE _IOWR('k', 2, struct hostfile_message)

#endif
