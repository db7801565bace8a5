// SPDX-License-Identifier: GPL-2.0-only
/*
 * Descriptors of the host's as files of the guest's: a program here reads and writes a pipe there, without anybody who
 * copies between them, so the pipe's own room is the flow control. They come over a Unix socket (unix(7), SCM_RIGHTS)
 * that the kernel's process has inherited; init takes them from it for the commands that it is asked to run.
 *
 * One interrupt serves all: that of an epoll(7) descriptor in which they all are. Their signals are the kernel's SIGIO.
 */
#include <irq_kern.h>
#include <linux/anon_inodes.h>
#include <linux/fs.h>
#include <linux/interrupt.h>
#include <linux/poll.h>
#include <linux/proc_fs.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/socket.h>
#include <linux/uaccess.h>
#include <linux/wait.h>
#include <uapi/linux/eventpoll.h>

#include "agent.h"
#include "host.h"
#include "hostfile_abi.h"

#define AT_ONCE_BYTES 65536 /* as much as a pipe holds */
#define MESSAGE_BYTES (256 * 1024)
#define EVENTS 16

struct hostfile {
	int fd; /* the host's number */
	wait_queue_head_t waiters;
};

static const struct file_operations operations;
static struct proc_dir_entry *proc;
static int requests_fd = -1, epoll = -1, irq = -1;

static long host(long number, long a, long b, long c)
{
	return agent_host_call(number, a, b, c, 0, 0, 0);
}

static void wake_waiters(void)
{
	struct epoll_event events[EVENTS];
	long count;

	do {
		count = agent_host_call(HOST_EPOLL_WAIT, epoll, (long)events, EVENTS, 0, 0, 0);
		for (long i = 0; i < count; i++)
			wake_up_all(&((struct hostfile *)events[i].data)->waiters);
	} while (count == EVENTS);
}

static irqreturn_t something_moved(int number, void *data)
{
	wake_waiters();
	return IRQ_HANDLED;
}

/* What epoll(7) refuses (EPERM), a regular file, never makes anybody wait: it is left as it is. */
static void listen_to(struct hostfile *hostfile)
{
	struct epoll_event event = {
		.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
		.data = (u64)hostfile,
	};
	long flags;

	if (agent_host_call(HOST_EPOLL_CTL, epoll, EPOLL_CTL_ADD, hostfile->fd, (long)&event, 0, 0))
		return;
	wake_waiters(); /* nobody waits for this one yet: what it is ready for already need not interrupt */
	flags = host(HOST_FCNTL, hostfile->fd, F_GETFL, 0);
	host(HOST_FCNTL, hostfile->fd, F_SETOWN, host(HOST_GETPID, 0, 0, 0));
	host(HOST_FCNTL, hostfile->fd, F_SETFL, flags | O_NONBLOCK | FASYNC);
}

/* Return a descriptor of the guest's for one of the host's; that one is closed where there can be none. */
static int give(int fd)
{
	struct hostfile *hostfile = kzalloc(sizeof(*hostfile), GFP_KERNEL);
	int given = -ENOMEM;

	if (hostfile) {
		hostfile->fd = fd;
		init_waitqueue_head(&hostfile->waiters);
		listen_to(hostfile);
		given = anon_inode_getfd("[host]", &operations, hostfile, O_RDWR | O_CLOEXEC);
	}
	if (given < 0) {
		host(HOST_CLOSE, fd, 0, 0);
		kfree(hostfile);
	}
	return given;
}

static int host_release(struct inode *inode, struct file *file)
{
	struct hostfile *hostfile = file->private_data;

	agent_host_call(HOST_EPOLL_CTL, epoll, EPOLL_CTL_DEL, hostfile->fd, 0, 0, 0);
	host(HOST_CLOSE, hostfile->fd, 0, 0);
	kfree(hostfile);
	return 0;
}

static __poll_t ready_for(const struct hostfile *hostfile, __poll_t wanted)
{
	struct pollfd asked = { .fd = hostfile->fd, .events = (__force short)wanted };

	host(HOST_POLL, (long)&asked, 1, 0);
	return (__force __poll_t)asked.revents;
}

static __poll_t host_poll(struct file *file, poll_table *table)
{
	struct hostfile *hostfile = file->private_data;

	poll_wait(file, &hostfile->waiters, table);
	return ready_for(hostfile, EPOLLIN | EPOLLOUT | EPOLLRDHUP);
}

/* Sleep until it is worth another try; 0, or why not. */
static int wait_for(struct file *file, __poll_t wanted)
{
	struct hostfile *hostfile = file->private_data;

	if (file->f_flags & O_NONBLOCK)
		return -EAGAIN;
	return wait_event_interruptible(hostfile->waiters, ready_for(hostfile, wanted));
}

static ssize_t host_read(struct file *file, char __user *to, size_t size, loff_t *position)
{
	struct hostfile *hostfile = file->private_data;
	size_t room = min_t(size_t, size, AT_ONCE_BYTES);
	char *bytes = kvmalloc(room, GFP_KERNEL);
	ssize_t got;

	if (!bytes)
		return -ENOMEM;
	while ((got = host(HOST_READ, hostfile->fd, (long)bytes, room)) == -EAGAIN || got == -EINTR) {
		got = wait_for(file, EPOLLIN);
		if (got)
			break;
	}
	if (got > 0 && copy_to_user(to, bytes, got))
		got = -EFAULT;
	kvfree(bytes);
	return got;
}

static ssize_t host_write(struct file *file, const char __user *from, size_t size, loff_t *position)
{
	struct hostfile *hostfile = file->private_data;
	size_t room = min_t(size_t, size, AT_ONCE_BYTES), done = 0, here = 0, put = 0;
	char *bytes = kvmalloc(room, GFP_KERNEL);
	ssize_t written = 0;

	if (!bytes)
		return -ENOMEM;
	while (done < size) {
		if (put == here) {
			here = min_t(size_t, size - done, room);
			put = 0;
			if (copy_from_user(bytes, from + done, here)) {
				written = -EFAULT;
				break;
			}
		}
		written = host(HOST_WRITE, hostfile->fd, (long)bytes + put, here - put);
		if (written == -EAGAIN || written == -EINTR) {
			written = wait_for(file, EPOLLOUT);
			if (written)
				break;
			continue;
		}
		if (written < 0)
			break;
		put += written;
		done += written;
	}
	kvfree(bytes);
	if (written == -EPIPE)
		send_sig(SIGPIPE, current, 0);
	return done ? done : written;
}

/* Take the next datagram from the host, and up to HOSTFILE_FDS descriptors of its own with it. */
static long receive(struct file *file, struct hostfile_message *message, char *bytes)
{
	struct hostfile *hostfile = file->private_data;
	char control[CMSG_SPACE(HOSTFILE_FDS * sizeof(int))] __aligned(8);
	struct iovec vector = { .iov_base = (void __user *)bytes, .iov_len = message->bytes };
	struct user_msghdr header;
	struct cmsghdr *rights = (struct cmsghdr *)control;
	long got;

	do {
		header = (struct user_msghdr){
			.msg_iov = (struct iovec __user *)&vector,
			.msg_iovlen = 1,
			.msg_control = (void __user *)control,
			.msg_controllen = sizeof(control),
		};
		got = host(HOST_RECVMSG, hostfile->fd, (long)&header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
		if (got == -EAGAIN || got == -EINTR) {
			int cut = wait_for(file, EPOLLIN);

			if (cut)
				return cut;
			got = -EAGAIN;
		}
	} while (got == -EAGAIN);
	message->count = 0;
	if (got < 0 || header.msg_controllen < sizeof(*rights) || rights->cmsg_level != SOL_SOCKET ||
	    rights->cmsg_type != SCM_RIGHTS)
		return got;
	message->count = (rights->cmsg_len - sizeof(*rights)) / sizeof(int);
	for (u32 i = 0; i < message->count; i++)
		message->fds[i] = give(((int *)CMSG_DATA(rights))[i]);
	return got;
}

static long host_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	struct hostfile_message __user *asked = (void __user *)argument;
	struct hostfile_message message;
	char *bytes;
	long got;

	if (number != HOSTFILE_RECEIVE)
		return -ENOTTY;
	if (copy_from_user(&message, asked, sizeof(message)))
		return -EFAULT;
	message.bytes = min_t(u32, message.bytes, MESSAGE_BYTES);
	bytes = kvmalloc(message.bytes, GFP_KERNEL);
	if (!bytes)
		return -ENOMEM;
	got = receive(file, &message, bytes);
	if (got >= 0 && (copy_to_user((void __user *)message.data, bytes, got) ||
			 copy_to_user(asked, &message, sizeof(message))))
		got = -EFAULT;
	kvfree(bytes);
	return got;
}

static const struct file_operations operations = {
	.owner = THIS_MODULE,
	.read = host_read,
	.write = host_write,
	.poll = host_poll,
	.unlocked_ioctl = host_ioctl,
	.release = host_release,
};

static long proc_ioctl(struct file *file, unsigned int number, unsigned long argument)
{
	int fd = requests_fd;

	if (number != HOSTFILE_REQUESTS)
		return -ENOTTY;
	requests_fd = -1; /* there is one server */
	return fd < 0 ? -EBUSY : give(fd);
}

static const struct proc_ops proc_operations = {
	.proc_ioctl = proc_ioctl,
};

int agent_hostfiles_open(int socket_fd)
{
	requests_fd = socket_fd;
	epoll = host(HOST_EPOLL_CREATE1, O_CLOEXEC, 0, 0);
	if (epoll < 0)
		return epoll;
	irq = um_request_irq(UM_IRQ_ALLOC, epoll, IRQ_READ, something_moved, 0, "skblab files", &epoll);
	if (irq < 0)
		return irq;
	proc = proc_create(HOSTFILE_PROC, 0600, NULL, &proc_operations);
	return proc ? 0 : -ENOMEM;
}

void agent_hostfiles_close(void)
{
	if (proc)
		proc_remove(proc);
	if (irq >= 0)
		um_free_irq(irq, &epoll);
	if (epoll >= 0)
		host(HOST_CLOSE, epoll, 0, 0);
}
