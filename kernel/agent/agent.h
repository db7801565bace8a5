/* SPDX-License-Identifier: GPL-2.0-only */
/* What the agent's files share. One processor, no preemption (UML): interrupts are the only concurrency. */
#ifndef SKBLAB_AGENT_H
#define SKBLAB_AGENT_H

#include <linux/filter.h>
#include <linux/list.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>

#include "agent_abi.h"

#define AGENT_ENTRY_BYTES 5 /* -fpatchable-function-entry=5 */
#define AGENT_ARGUMENTS 6

/* What the trampoline has saved, in the order of its pushes, lowest address first. */
struct agent_regs {
	unsigned long r11, r10, rax, r9, r8, rcx, rdx, rsi, rdi;
	unsigned long rbp;
	unsigned long ip; /* behind the patched NOPs */
	unsigned long caller; /* the probed function's return address */
};

struct agent_probe { /* one patched function */
	struct hlist_node node;
	unsigned long address;
	struct list_head rules; /* in the order in which they were armed: the first match wins */
};

struct agent_rule {
	struct list_head list;
	struct agent_probe *probe;
	struct agent_arm arm;
	struct bpf_prog *filter;
	u16 number;
	u64 occurrence;
	u32 random;
};

/* channel.c: memory and socket shared with the host */
extern struct agent_shared *agent_shared;
long agent_host_call(long number, long a, long b, long c, long d, long e, long f);
int agent_channel_open(int memory_fd, int socket_fd);
void agent_channel_ready(void);
void agent_channel_close(void);
void agent_ring(void);
void agent_ring_soon(void);
bool agent_listen(u32 *farewells);

/* hostfile.c: descriptors of the host's as files of the guest's */
int agent_hostfiles_open(int socket_fd);
void agent_hostfiles_close(void);

/* ring.c: records in that memory */
void *agent_event_begin(u16 kind, u16 rule, u32 bytes);
void agent_event_end(const void *event);
struct agent_record *agent_command(void);
void agent_commands_forget(void);
void agent_command_done(const struct agent_record *record);

/* clock.c: the guest's monotonic clock */
u64 agent_now_ns(void);

/* tell.c: what the host is told */
bool agent_tell_hit(const struct agent_rule *rule, const struct agent_regs *regs, const struct sk_buff *skb,
		    u64 packet);
void agent_tell_end(u16 kind, u16 rule, u64 packet);
void agent_answer(u64 cookie, long result);

/* what became of a rule's packets */
static inline struct agent_counts *agent_counts(u16 rule)
{
	return &agent_shared->counts[rule];
}

/* probe.c: which function has which rules; patching */
int agent_arm(const struct agent_arm *arm);
int agent_disarm(u16 number);
bool agent_disarm_all(void);
struct agent_probe *agent_probe_at(unsigned long address);

/* stack.c: who called */
unsigned int agent_stack(const struct agent_arm *arm, const struct agent_regs *regs, const u64 **words);

/* rule.c: does a packet match? */
struct agent_rule *agent_match(struct agent_probe *probe, const struct agent_regs *regs, struct sk_buff **skb);
int agent_network_offset(const struct sk_buff *skb);

/* hit.c: what the trampoline calls */
int agent_hit(struct agent_regs *regs);
void agent_stop(const struct sk_buff *skb);
void agent_trampoline(void);

/* held.c: packets that are set aside */
u64 agent_hold(struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff *skb);
int agent_decide(const struct agent_decide *decide);
void agent_release_rule(u16 rule);
void agent_held_flush(void);

/* measure.c: what a probe costs */
void agent_measured(struct sk_buff *skb);
long agent_measure(const struct agent_decide *decide);

/* edit.c: write a held packet's bytes back */
int agent_write(struct sk_buff *skb, const void *data, u32 bytes, int data_offset);

static inline unsigned long agent_argument(const struct agent_regs *regs, unsigned int number)
{
	/* rdi, rsi, rdx, rcx, r8, r9: each lies below the one before. */
	return ((const unsigned long *)regs)[offsetof(struct agent_regs, rdi) / sizeof(long) - number];
}

/* Call a probed function behind its NOPs, with a packet as the caller would have passed it. */
static inline void agent_call(unsigned long address, const unsigned long *a)
{
	typedef long (*agent_entry)(unsigned long, unsigned long, unsigned long, unsigned long, unsigned long,
				    unsigned long);

	((agent_entry)(address + AGENT_ENTRY_BYTES))(a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
