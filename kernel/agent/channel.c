// SPDX-License-Identifier: GPL-2.0-only
/*
 * Memory and a socket shared with the host. The kernel is a process of the host: a system call instruction here is a
 * system call there, and what it maps is ordinary memory.
 */
#include <asm/barrier.h>
#include <linux/kernel.h>
#include <linux/ktime.h>

#include "agent.h"

/* The host's numbers (x86-64); the guest's own headers have the same, for the same architecture. */
#define HOST_READ 0
#define HOST_WRITE 1
#define HOST_MMAP 9
#define HOST_MUNMAP 11
#define HOST_CLOCK_GETTIME 228
#define HOST_PROT_READ_WRITE 3
#define HOST_MAP_SHARED 1
#define HOST_CLOCK_MONOTONIC 1

#define ANSWERS_BYTES 65536 /* of the ring of events, kept free for them */

struct agent_shared *agent_shared;
static int doorbell = -1;

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

int agent_channel_open(int memory_fd, int socket_fd)
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
	agent_shared->stop_address = (u64)agent_stop;
	agent_shared->clock_guest_ns = ktime_get_mono_fast_ns();
	agent_host_call(HOST_CLOCK_GETTIME, HOST_CLOCK_MONOTONIC, (long)now, 0, 0, 0, 0);
	agent_shared->clock_host_ns = now[0] * NSEC_PER_SEC + now[1];
	return 0;
}

void agent_channel_close(void)
{
	agent_host_call(HOST_MUNMAP, (long)agent_shared, agent_shared->memory_bytes, 0, 0, 0, 0);
}

void agent_channel_ready(void)
{
	smp_store_release(&agent_shared->magic, AGENT_MAGIC);
	ring_doorbell();
}

/* Empty the socket; false at its end: the host is gone. */
bool agent_socket_drained(void)
{
	char bytes[64];
	long got;

	do
		got = agent_host_call(HOST_READ, doorbell, (long)bytes, sizeof(bytes), 0, 0, 0);
	while (got == sizeof(bytes));
	return got != 0;
}

/*
 * Where the next event of so many bytes goes, or NULL where the ring is full. Interrupts are off. A hit leaves room for
 * answers and for the end of each packet that is held: it is the one event that can be done without.
 */
static struct agent_record *event_place(u32 bytes, bool is_hit)
{
	u64 size = agent_shared->events_bytes, head = agent_shared->events_head;
	u64 used = head - smp_load_acquire(&agent_shared->events_tail), left = size - head % size;
	char *ring = (char *)agent_shared + agent_shared->events_offset;

	if (is_hit)
		used += ANSWERS_BYTES + (agent_shared->held + 1) * sizeof(struct agent_end);
	if (left < bytes) {
		if (used + left + bytes > size)
			return NULL;
		*(struct agent_record *)(ring + head % size) = (struct agent_record){ .bytes = left };
		head += left;
		agent_shared->events_head = head;
	} else if (used + bytes > size) {
		return NULL;
	}
	return (struct agent_record *)(ring + head % size);
}

/*
 * Tell the host something: a record of some bytes, and so much of a packet behind it, from an offset to skb->data on.
 * Interrupts are off. False where the ring is full; that is counted.
 */
bool agent_event(struct agent_record *record, u32 bytes, const struct sk_buff *skb, int offset, u32 captured)
{
	u32 whole = ALIGN(bytes + captured, 8);
	struct agent_record *place = event_place(whole, record->kind == AGENT_HIT);

	if (!place) {
		agent_shared->lost++;
		return false;
	}
	record->bytes = whole;
	memcpy(place, record, bytes);
	if (captured && skb_copy_bits(skb, offset, (char *)place + bytes, captured))
		memset((char *)place + bytes, 0, captured);
	smp_store_release(&agent_shared->events_head, agent_shared->events_head + whole);
	/* The host is on another processor: its "I wait" must be looked for after our head is visible (mb(), not smp_mb()). */
	mb();
	if (READ_ONCE(agent_shared->host_waits)) {
		WRITE_ONCE(agent_shared->host_waits, 0);
		ring_doorbell();
	}
	return true;
}

void agent_done(u64 cookie, long result)
{
	struct agent_done done = { .record.kind = AGENT_DONE, .cookie = cookie, .result = result };
	unsigned long flags;

	local_irq_save(flags);
	agent_event(&done.record, sizeof(done), NULL, 0, 0);
	local_irq_restore(flags);
}

/* The next command, or NULL; it stays in the ring until agent_command_done(). */
struct agent_record *agent_command(void)
{
	char *ring = (char *)agent_shared + agent_shared->commands_offset;
	struct agent_record *record;

	while (agent_shared->commands_tail != smp_load_acquire(&agent_shared->commands_head)) {
		record = (struct agent_record *)(ring + agent_shared->commands_tail % agent_shared->commands_bytes);
		if (record->kind)
			return record;
		agent_command_done(record);
	}
	return NULL;
}

void agent_command_done(const struct agent_record *record)
{
	smp_store_release(&agent_shared->commands_tail, agent_shared->commands_tail + record->bytes);
}
