// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory and a socket shared with the host. The kernel is a process of the host: a system call instruction here is a
 * system call there, and what it maps is ordinary memory.
 */
#include <asm/barrier.h>
#include <linux/interrupt.h>
#include <linux/kernel.h>
#include <linux/ktime.h>
#include <shared/timetravel.h>
#include <uapi/linux/poll.h>
#include <uapi/linux/um_timetravel.h>

#include "agent.h"
#include "host.h"

#define HOST_CLOCK_GETTIME 228
#define HOST_MADV_POPULATE_WRITE 23
#define HOST_CLOCK_MONOTONIC 1
#define HOST_EINTR 4
#define HOST_EAGAIN 11

struct agent_shared *agent_shared;
static int doorbell = -1, clock = -1;
static bool bell_is_due;

static void ring_late(struct tasklet_struct *tasklet);
static DECLARE_TASKLET(bell_tasklet, ring_late);

long agent_host_call(long number, long a, long b, long c, long d, long e, long f)
{
	register long r10 asm("r10") = d;
	register long r8 asm("r8") = e;
	register long r9 asm("r9") = f;
	long result;

	asm volatile("syscall"
		     : "=a"(result)
		     : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
		     : "rcx", "r11", "memory");
	return result;
}

static void ring_doorbell(void)
{
	char byte = 0;

	agent_host_call(HOST_WRITE, doorbell, (long)&byte, 1, 0, 0, 0); /* full: the host is awake anyway */
}

/* Ring if the host waits. It is on another processor: its "I wait" is looked for after our head is visible (not smp_mb()). */
void agent_ring(void)
{
	bell_is_due = false;
	mb();
	if (READ_ONCE(agent_shared->host_waits)) {
		WRITE_ONCE(agent_shared->host_waits, 0);
		ring_doorbell();
	}
}

static void ring_late(struct tasklet_struct *tasklet)
{
	agent_ring();
}

/* The host that is woken may be given the guest's processor: what is being done to a packet goes first. */
void agent_ring_soon(void)
{
	if (bell_is_due)
		return;
	bell_is_due = true;
	tasklet_schedule(&bell_tasklet);
}

int agent_channel_open(int memory_fd, int socket_fd, int clock_fd)
{
	struct agent_shared *shared;
	u64 now[2];
	long mapped;

	/* The first page tells the size of the whole. */
	mapped = agent_host_call(HOST_MMAP, 0, PAGE_SIZE, HOST_PROT_READ_WRITE, HOST_MAP_SHARED, memory_fd, 0);
	if (IS_ERR_VALUE(mapped))
		return mapped;
	shared = (struct agent_shared *)mapped;
	mapped = agent_host_call(HOST_MMAP, 0, shared->memory_bytes, HOST_PROT_READ_WRITE, HOST_MAP_SHARED, memory_fd,
				 0);
	agent_host_call(HOST_MUNMAP, (long)shared, PAGE_SIZE, 0, 0, 0, 0);
	if (IS_ERR_VALUE(mapped))
		return mapped;
	agent_shared = (struct agent_shared *)mapped;
	doorbell = socket_fd;
	clock = clock_fd;
	agent_shared->stop_address = (u64)agent_stop;
	agent_shared->trampoline_address = (u64)agent_trampoline;
	agent_shared->by_hand_address = (u64)&agent_by_hand;
	agent_shared->measured_address = (u64)agent_measured;
	agent_shared->clock_guest_ns = ktime_get_mono_fast_ns();
	agent_host_call(HOST_CLOCK_GETTIME, HOST_CLOCK_MONOTONIC, (long)now, 0, 0, 0, 0);
	agent_shared->clock_host_ns = now[0] * NSEC_PER_SEC + now[1];
	if (time_travel_mode != TT_MODE_OFF) /* there is only this clock */
		agent_shared->clock_host_ns = agent_shared->clock_guest_ns;
	return 0;
}

void agent_channel_close(void)
{
	agent_steps_quiet();
	tasklet_kill(&bell_tasklet);
	agent_host_call(HOST_MUNMAP, (long)agent_shared, agent_shared->memory_bytes, 0, 0, 0, 0);
}

void agent_channel_ready(void)
{
	smp_store_release(&agent_shared->magic, AGENT_MAGIC);
	ring_doorbell();
}

/* Have the memory of the ring of steps there before they come: each page would take longer than the steps on it. */
void agent_steps_prepare(void)
{
	agent_host_call(HOST_MADVISE, (long)agent_shared + agent_shared->steps_offset, agent_shared->steps_bytes,
			HOST_MADV_POPULATE_WRITE, 0, 0, 0); /* Linux before 5.14 does not know it, and is slower */
}

/* Empty the socket, and count the controllers that have left; false at its end: the host is gone. Interrupts are off. */
bool agent_listen(u32 *farewells)
{
	char bytes[64];
	long got;

	do {
		got = agent_host_call(HOST_READ, doorbell, (long)bytes, sizeof(bytes), 0, 0, 0);
		for (long i = 0; i < got; i++)
			*farewells += bytes[i] == AGENT_FAREWELL;
	} while (got == sizeof(bytes));
	return got == -HOST_EAGAIN || got == -HOST_EINTR || got > 0; /* else it is closed, or was reset */
}

/* The host's commands come with the doorbell: sleep until it rings. A signal may end that, too. */
void agent_await_doorbell(void)
{
	struct pollfd watched = { .fd = doorbell, .events = POLLIN };

	agent_host_call(HOST_POLL, (long)&watched, 1, -1, 0, 0, 0);
}

/* Tell the controller of virtual time something that it does not answer. */
void agent_say_of_time(u32 op, s64 value)
{
	const struct um_timetravel_msg message = { .op = op, .time = value };

	while (agent_host_call(HOST_WRITE, clock, (long)&message, sizeof(message), 0, 0, 0) == -HOST_EINTR)
		;
}
