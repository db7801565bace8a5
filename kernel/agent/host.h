/* SPDX-License-Identifier: GPL-2.0-only */
/* The host's system calls (x86-64; the guest's own headers have the same numbers, for the same architecture), and what they take. */
#ifndef SKBLAB_HOST_H
#define SKBLAB_HOST_H

#define HOST_READ 0
#define HOST_WRITE 1
#define HOST_CLOSE 3
#define HOST_POLL 7
#define HOST_MMAP 9
#define HOST_MPROTECT 10
#define HOST_MUNMAP 11
#define HOST_MADVISE 28
#define HOST_GETPID 39
#define HOST_RECVMSG 47
#define HOST_FCNTL 72
#define HOST_EPOLL_WAIT 232
#define HOST_EPOLL_CTL 233
#define HOST_EPOLL_CREATE1 291

#define HOST_PROT_READ_WRITE 3
#define HOST_MAP_SHARED 1

#endif
