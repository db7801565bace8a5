// SPDX-License-Identifier: GPL-2.0-only
/*
 * A second kernel like this one, in virtual time: a copy of its process, made while the guest is at rest.
 *
 * The host sends AGENT_BRANCH_SIGNAL, which finds this process in poll(2), waiting for its time. The handler does what the
 * host orders (struct agent_branch): it copies the process, and gives the copy memory and descriptors of its own. Both then
 * return to that poll(2). So nothing happens in the guest, and what happens next is the same in both.
 *
 * A guest's program is a process of the host's, whose mappings are no more than a TLB of the guest's page tables. The copy
 * starts others, and has them filled from those tables.
 */
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/sched/signal.h>
#include <linux/sched/task.h>
#include <linux/socket.h>
#include <linux/pgtable.h>
#include <uapi/linux/eventpoll.h>
#include <uapi/linux/poll.h>
#include <shared/skas/stub-data.h>
#ifdef CONFIG_KASAN
#include <asm/kasan.h>
#endif

#include "agent.h"
#include "host.h"

#define HOST_LSEEK 8
#define HOST_RT_SIGACTION 13
#define HOST_RT_SIGPROCMASK 14
#define HOST_SOCKETPAIR 53
#define HOST_CLONE 56
#define HOST_SETSID 112
#define HOST_PRCTL 157
#define HOST_EXIT_GROUP 231
#define HOST_DUP3 292
#define HOST_PIPE2 293

#define HOST_SA_RESTORER 0x04000000
#define HOST_SA_RESTART 0x10000000
#define HOST_PROT_READ 1
#define HOST_MAP_FIXED 0x10
#define HOST_MAP_PRIVATE_ANONYMOUS 0x22
#define HOST_CLONE_PARENT 0x00008000
#define HOST_CLONE_CHILD_SETTID 0x01000000
#define HOST_SIGPIPE 13
#define HOST_SIGCHLD 17
#define HOST_SIG_SETMASK 2
#define HOST_PR_GET_TID_ADDRESS 40
#define HOST_SEEK_DATA 3
#define HOST_SEEK_HOLE 4
#define HOST_MADV_DONTFORK 10
#define HOST_MADV_DOFORK 11
#define HOST_F_SETSIG 10
#define HOST_F_GETSIG 11

#define AREA_BYTES (AGENT_BRANCH_BYTES + (32 << 10)) /* an order, and a stack */
#define WAS_NOT_MAPPED 0x800 /* an unused bit of a page table's entry, before 6.12 */
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
#define NOT_MAPPED _PAGE_NEEDSYNC
#else
#define NOT_MAPPED (_PAGE_NEWPAGE | _PAGE_NEWPROT)
#endif
#define KEPT_FLAGS (O_APPEND | O_NONBLOCK | FASYNC)

struct host_sigaction {
	void (*handler)(int number);
	u64 flags;
	void (*restorer)(void);
	u64 mask;
};

/* An order, and behind it the stack on which a copy works until it has memory of its own. Both are the process's own. */
static struct agent_branch *order;
static int given[AGENT_BRANCH_FDS];
static int clock = -1;

void agent_branch_restorer(void);
asm(".pushsection .text\n"
    "agent_branch_restorer:\n"
    "	mov $15, %eax\n" /* rt_sigreturn */
    "	syscall\n"
    "	.popsection\n");

static long host(long number, long a, long b, long c, long d)
{
	return agent_host_call(number, a, b, c, d, 0, 0);
}

static long map(long at, long bytes, long protection, long flags, int fd, long offset)
{
	return agent_host_call(HOST_MMAP, at, bytes, protection, flags, fd, offset);
}

static bool is_zero(const u64 *page)
{
	for (int i = 0; i < PAGE_SIZE / sizeof(*page); i += 8)
		if (page[i] | page[i + 1] | page[i + 2] | page[i + 3] | page[i + 4] | page[i + 5] | page[i + 6] | page[i + 7])
			return false;
	return true;
}

/* Copy what a file in memory has, and leave the holes. */
static long copy_content(int from, int to, long bytes)
{
	long source = map(0, bytes, HOST_PROT_READ, HOST_MAP_SHARED, from, 0);
	long target = map(0, bytes, HOST_PROT_READ_WRITE, HOST_MAP_SHARED, to, 0);
	long at = 0, end;

	if (IS_ERR_VALUE(source) || IS_ERR_VALUE(target))
		return IS_ERR_VALUE(source) ? source : target;
	while ((at = host(HOST_LSEEK, from, at, HOST_SEEK_DATA, 0)) >= 0) {
		end = host(HOST_LSEEK, from, at, HOST_SEEK_HOLE, 0);
		if (end < 0)
			return end;
		for (; at < end; at += PAGE_SIZE)
			if (!is_zero((u64 *)(source + at)))
				memcpy((void *)(target + at), (void *)(source + at), PAGE_SIZE);
	}
	host(HOST_MUNMAP, source, bytes, 0, 0);
	host(HOST_MUNMAP, target, bytes, 0, 0);
	return at == -ENXIO ? 0 : at;
}

/* Have a number stand for another file, with the same flags. */
static long replace(int fd, int by)
{
	long flags = host(HOST_FCNTL, fd, F_GETFL, 0, 0);
	long number = host(HOST_FCNTL, fd, HOST_F_GETSIG, 0, 0);
	long closes = host(HOST_FCNTL, fd, F_GETFD, 0, 0);
	long error = host(HOST_DUP3, by, fd, closes & FD_CLOEXEC ? O_CLOEXEC : 0, 0);

	if (error < 0 || !(flags & KEPT_FLAGS))
		return error;
	if (flags & FASYNC) {
		host(HOST_FCNTL, fd, HOST_F_SETSIG, number, 0);
		host(HOST_FCNTL, fd, F_SETOWN, host(HOST_GETPID, 0, 0, 0, 0), 0);
	}
	return host(HOST_FCNTL, fd, F_SETFL, flags & KEPT_FLAGS, 0);
}

static long replace_pair(int one, int other)
{
	int pair[2];
	long error = agent_host_call(HOST_SOCKETPAIR, AF_UNIX, SOCK_STREAM, 0, (long)pair, 0, 0);

	if (error)
		return error;
	error = min(replace(one, pair[0]), replace(other, pair[1]));
	host(HOST_CLOSE, pair[0], 0, 0, 0);
	host(HOST_CLOSE, pair[1], 0, 0, 0);
	return error;
}

static long replace_epoll(int fd)
{
	long epoll = host(HOST_EPOLL_CREATE1, 0, 0, 0, 0), error;

	if (epoll < 0)
		return epoll;
	error = replace(fd, epoll);
	host(HOST_CLOSE, epoll, 0, 0, 0);
	return error;
}

/* What there is to report now (EPOLLET) was reported to the kernel that this one was copied from: nothing is new to it. */
static long watch(int epoll, int fd, u32 events, u64 data)
{
	struct epoll_event event = { .events = events, .data = data };
	long error = host(HOST_EPOLL_CTL, epoll, EPOLL_CTL_ADD, fd, (long)&event);

	return error ? error : host(HOST_EPOLL_WAIT, epoll, (long)&event, 1, 0);
}

static long carry_out(const struct agent_branch_step *step)
{
	switch (step->kind) {
	case AGENT_BRANCH_COPY:
		return copy_content(step->fd, given[step->other], step->bytes);
	case AGENT_BRANCH_REPLACE:
		return replace(step->fd, given[step->other]);
	case AGENT_BRANCH_MAP:
		return min(map(step->address, step->bytes, step->flags, HOST_MAP_SHARED | HOST_MAP_FIXED, step->fd,
			       step->offset), 0l);
	case AGENT_BRANCH_PAIR:
		return replace_pair(step->fd, step->other);
	case AGENT_BRANCH_EPOLL:
		return replace_epoll(step->fd);
	case AGENT_BRANCH_WATCH:
		return watch(step->fd, step->other, step->flags, step->address);
	default:
		return -EINVAL;
	}
}

/* Carry out the steps that are of memory, or those that are not; return 0, or the first error. */
static long carry_all_out(bool of_memory)
{
	for (u32 i = 0; i < order->steps; i++) {
		bool is = order->step[i].kind <= AGENT_BRANCH_MAP;
		long error = is == of_memory ? carry_out(&order->step[i]) : 0;

		if (error < 0)
			return error;
	}
	return 0;
}

/* KASAN's own memory is not copied (arch/um/os-Linux/mem.c kasan_map_memory()), but for this one copy. It always was before. */
static void copy_shadow(bool is_copied)
{
#if defined(CONFIG_KASAN) && LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	host(HOST_MADVISE, KASAN_SHADOW_START, KASAN_SHADOW_SIZE, is_copied ? HOST_MADV_DOFORK : HOST_MADV_DONTFORK, 0);
#endif
}

static long begin_error;

/*
 * The copy begins, on a stack of its own. Until it has its own memory, it shares that of the kernel that it was copied from, and
 * writes nothing there.
 */
static void begin(void)
{
	long error;

	host(HOST_SETSID, 0, 0, 0, 0); /* one kill(2) ends it, and the processes of its programs */
	copy_shadow(false);
	error = carry_all_out(true);
	begin_error = error;
}

/* Have a page mapped again where programs run. */
static void forget_mapped(pte_t *pte)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	*pte = pte_mkneedsync(*pte);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	*pte = pte_mknewprot(pte_mknewpage(*pte));
#else
	/* A page that was not mapped yet will be by a fault, which is counted. */
	if (pte_newpage(*pte))
		*pte = __pte((pte_val(*pte) & ~(_PAGE_NEWPAGE | _PAGE_NEWPROT)) | WAS_NOT_MAPPED);
	else
		*pte = pte_mknewprot(pte_mknewpage(*pte));
#endif
}

static __maybe_unused void leave_unmapped(pte_t *pte)
{
	if (pte_val(*pte) & WAS_NOT_MAPPED)
		*pte = __pte((pte_val(*pte) & ~WAS_NOT_MAPPED) | NOT_MAPPED);
}

/* Do something with every page of an address space that is there. */
static void for_each_page(struct mm_struct *mm, void (*what)(pte_t *pte))
{
	unsigned long at, step;

	for (at = 0; at < mm->task_size; at = (at | (step - 1)) + 1) {
		pgd_t *pgd = pgd_offset(mm, at);
		p4d_t *p4d = p4d_offset(pgd, at);
		pud_t *pud;
		pmd_t *pmd;
		pte_t *pte;

		step = PGDIR_SIZE;
		if (pgd_none(*pgd) || p4d_none(*p4d))
			continue;
		step = PUD_SIZE;
		pud = pud_offset(p4d, at);
		if (pud_none(*pud))
			continue;
		step = PMD_SIZE;
		pmd = pmd_offset(pud, at);
		if (pmd_none(*pmd))
			continue;
		step = PAGE_SIZE;
		pte = pte_offset_kernel(pmd, at);
		if (pte_present(*pte))
			what(pte);
	}
}

/* Start a process for the programs of an address space, and count it. */
static long restart(struct mm_struct *mm, u32 *count)
{
	struct mm_id *id = &mm->context.id;
	long error;

	++*count;
	for_each_page(mm, forget_mapped);
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	if (id->pid < 0) /* it has died */
		return -ESRCH;
	if (id->sock > 0)
		host(HOST_CLOSE, id->sock, 0, 0, 0);
	id->syscall_data_len = 0;
	id->syscall_fd_num = 0;
	memset(&((struct stub_data *)id->stack)->arch_data, 0, sizeof(struct stub_data_arch));
	error = ((int (*)(struct mm_id *))order->start_userspace)(id);
	if (error < 0)
		return error;
	((int (*)(struct mm_id *, unsigned long, unsigned long))order->unmap)(id, 0, order->stub_start);
#elif LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	id->syscall_data_len = 0;
	error = ((int (*)(unsigned long))order->start_userspace)(id->stack);
	if (error < 0)
		return error;
	id->pid = error;
	((int (*)(struct mm_id *, unsigned long, unsigned long))order->unmap)(id, 0, TASK_SIZE);
#else
	void *data = NULL;

	if (mm->context.arch.ldt.entry_count)
		return -EBUSY;
	error = ((int (*)(unsigned long))order->start_userspace)(id->stack);
	if (error < 0)
		return error;
	id->u.pid = error;
	error = ((int (*)(struct mm_id *, unsigned long, unsigned long, int, void **))order->unmap)(id, 0, TASK_SIZE, 1,
												     &data);
	if (error < 0)
		return error;
	((void (*)(struct mm_struct *, unsigned long, unsigned long, int))order->fix_range)(mm, 0, TASK_SIZE, 0);
	for_each_page(mm, leave_unmapped);
	return 0;
#endif
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
	mm->context.sync_tlb_range_from = 0;
	mm->context.sync_tlb_range_to = TASK_SIZE;
	return 0;
#endif
}

/* init_mm has none. */
static bool has_programs(const struct mm_struct *mm)
{
	return mm && mm->context.id.stack;
}

static struct mm_struct *space_of(const struct task_struct *task)
{
	return task->mm ? task->mm : task->active_mm;
}

/* Is this the first task that has this address space? */
static bool is_first(const struct task_struct *task)
{
	const struct task_struct *leader, *one;

	list_for_each_entry(leader, &init_task.tasks, tasks)
		list_for_each_entry(one, &leader->signal->thread_head, thread_node) {
			if (one == task)
				return true;
			if (space_of(one) == space_of(task))
				return false;
		}
	return true;
}

/*
 * Would a task go on with the process that it had? Before 6.16, userspace() takes the number of that before it delivers signals
 * (arch/um/os-Linux/skas/process.c), and a task that is stopped or traced sleeps there.
 */
static bool keeps_process(const struct task_struct *task)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 16, 0)
	return false;
#else
	return task->mm && (READ_ONCE(task->__state) & (__TASK_STOPPED | __TASK_TRACED));
#endif
}

/* Give all programs processes of their own. Nothing else runs in this kernel, so nothing is locked. */
static long restart_all(void)
{
	struct mm_struct *here = current->active_mm; /* no task may have it any more */
	struct task_struct *leader, *task;
	bool has_here = !has_programs(here);
	u32 count = 0;
	long error = 0;

	list_for_each_entry(leader, &init_task.tasks, tasks)
		list_for_each_entry(task, &leader->signal->thread_head, thread_node) {
			struct mm_struct *mm = space_of(task);

			if (keeps_process(task))
				error = -EBUSY;
			if (error < 0 || !has_programs(mm) || !is_first(task))
				continue;
			has_here |= mm == here;
			error = restart(mm, &count);
		}
	if (error >= 0 && !has_here)
		error = restart(here, &count);
	if (error >= 0 && count != order->programs) /* an address space that no task has, but somebody else */
		error = -EBUSY;
#if LINUX_VERSION_CODE < KERNEL_VERSION(6, 16, 0)
	if (error >= 0 && has_programs(here))
		((void (*)(struct mm_id *))order->switch_mm)(&here->context.id);
#endif
	return error;
}

/*
 * Copy this process; 0 in the copy, which has run begin() on *stack* first. Inline: while the copy still has the same memory,
 * this process goes on, and writes below the frame that both are in.
 */
static __always_inline long fork_here(long stack, long tid_address)
{
	register long r8 asm("r8") = 0;
	register long r10 asm("r10") = tid_address;
	register void *begin_at asm("r13") = begin;
	long flags = HOST_CLONE_PARENT | HOST_SIGCHLD | (tid_address ? HOST_CLONE_CHILD_SETTID : 0);
	long none = 0, result = HOST_CLONE;

	asm volatile("mov %%rsp, %%r12\n\t"
		     "syscall\n\t"
		     "test %%rax, %%rax\n\t"
		     "jnz 1f\n\t"
		     "call *%%r13\n\t"
		     "mov %%r12, %%rsp\n\t"
		     "xor %%eax, %%eax\n"
		     "1:"
		     : "+a"(result), "+D"(flags), "+S"(stack), "+d"(none), "+r"(r8), "+r"(r10)
		     : "r"(begin_at)
		     : "rcx", "r9", "r11", "r12", "memory", "cc");
	return result;
}

static void close_given(long fds)
{
	for (long i = 0; i < fds; i++)
		host(HOST_CLOSE, given[i], 0, 0, 0);
}

/* Receive an order, and its descriptors; return how many, or an error. */
static long receive(void)
{
	char control[CMSG_SPACE(sizeof(given))] __aligned(8);
	struct iovec vector = { .iov_base = (void __user *)order, .iov_len = AGENT_BRANCH_BYTES };
	struct user_msghdr header = {
		.msg_iov = (struct iovec __user *)&vector,
		.msg_iovlen = 1,
		.msg_control = (void __user *)control,
		.msg_controllen = sizeof(control),
	};
	struct cmsghdr *rights = (struct cmsghdr *)control;
	long got, fds = 0;

	do
		got = host(HOST_RECVMSG, clock, (long)&header, MSG_CMSG_CLOEXEC, 0);
	while (got == -EINTR);
	if (got < 0)
		return got;
	if (header.msg_controllen >= sizeof(*rights) && rights->cmsg_type == SCM_RIGHTS)
		fds = (rights->cmsg_len - sizeof(*rights)) / sizeof(int);
	memcpy(given, CMSG_DATA(rights), fds * sizeof(int));
	if (got >= sizeof(*order) && got == sizeof(*order) + order->steps * sizeof(order->step[0]) && fds == order->fds)
		return fds;
	close_given(fds);
	return -EINVAL;
}

/*
 * Have the copy end without the kernel's last calls: they would remove files of the kernel that it was copied from, kill its
 * helpers, and wait for threads that only that one has (arch/um/os-Linux/umid.c, sigio.c, arch/um/drivers/ubd_kern.c).
 */
static long end_at_once(void)
{
	static const u8 returns[AGENT_ENTRY_BYTES] = { 0xc3 };

	return agent_write_entry(order->exitcalls, returns);
}

/* The copy, with memory of its own: give it the rest; the kernel that it was copied from waits for the result. */
static void become(int fds, int result_fd)
{
	u64 mask = 1 << (HOST_SIGPIPE - 1); /* UML's own; programs inherit it */
	long error = begin_error;

	host(HOST_RT_SIGPROCMASK, HOST_SIG_SETMASK, (long)&mask, 0, sizeof(mask));
	if (error >= 0)
		error = restart_all();
	if (error >= 0)
		error = carry_all_out(false);
	if (error >= 0)
		error = end_at_once();
	close_given(fds);
	host(HOST_WRITE, result_fd, (long)&error, sizeof(error), 0);
	host(HOST_CLOSE, result_fd, 0, 0, 0);
	if (error < 0)
		host(HOST_EXIT_GROUP, 1, 0, 0, 0);
}

static void branch(int number)
{
	struct pollfd unread = { .fd = clock, .events = POLLIN };
	int pipe[2] = { -1, -1 };
	long fds, copy, end, error = -EIO, tid_address = 0; /* where libc keeps what raise(3) takes */

	if (host(HOST_POLL, (long)&unread, 1, 0, 0)) { /* this kernel has yet to read that it rests */
		agent_say_of_time(AGENT_BRANCHES, -EAGAIN);
		return;
	}
	agent_say_of_time(AGENT_BRANCHES, 0);
	fds = receive();
	copy = fds < 0 ? fds : host(HOST_PIPE2, (long)pipe, O_CLOEXEC, 0, 0);
	host(HOST_PRCTL, HOST_PR_GET_TID_ADDRESS, (long)&tid_address, 0, 0);
	copy_shadow(true);
	if (copy >= 0)
		copy = fork_here((long)order + AREA_BYTES, tid_address);
	if (!copy) {
		host(HOST_CLOSE, pipe[0], 0, 0, 0);
		become(fds, pipe[1]);
		return;
	}
	copy_shadow(false);
	host(HOST_CLOSE, pipe[1], 0, 0, 0);
	if (copy > 0) {
		host(HOST_READ, pipe[0], (long)&error, sizeof(error), 0);
		host(HOST_READ, pipe[0], (long)&end, sizeof(end), 0); /* until it has closed its own: it may be copied next */
	}
	host(HOST_CLOSE, pipe[0], 0, 0, 0);
	close_given(fds);
	agent_say_of_time(AGENT_BRANCHED, copy > 0 && error < 0 ? error : copy);
}

int agent_branch_open(int clock_fd)
{
	const struct host_sigaction action = {
		.handler = branch,
		.flags = HOST_SA_RESTORER | HOST_SA_RESTART, /* else a read(2) of the word that it rests fails */
		.restorer = agent_branch_restorer,
		.mask = ~0ul,
	};
	long mapped;

	if (clock_fd < 0)
		return 0;
	mapped = map(0, AREA_BYTES, HOST_PROT_READ_WRITE, HOST_MAP_PRIVATE_ANONYMOUS, -1, 0);
	if (IS_ERR_VALUE(mapped))
		return mapped;
	order = (struct agent_branch *)mapped;
	clock = clock_fd;
	return host(HOST_RT_SIGACTION, AGENT_BRANCH_SIGNAL, (long)&action, 0, sizeof(action.mask));
}

void agent_branch_close(void)
{
	const struct host_sigaction ignored = { .handler = (void (*)(int))1 };

	if (!order)
		return;
	host(HOST_RT_SIGACTION, AGENT_BRANCH_SIGNAL, (long)&ignored, 0, sizeof(ignored.mask));
	host(HOST_MUNMAP, (long)order, AREA_BYTES, 0, 0);
}
