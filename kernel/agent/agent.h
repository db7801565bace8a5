/* SPDX-License-Identifier: GPL-2.0-only */
/* What the agent's files share. One processor, no preemption (UML): interrupts are the only concurrency. */
#ifndef SKBLAB_AGENT_H
#define SKBLAB_AGENT_H

#include <linux/filter.h>
#include <linux/list.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/version.h>
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 12, 0)
#include <linux/unaligned.h>
#else
#include <asm/unaligned.h>
#endif

#include "agent_abi.h"

#if defined(CONFIG_SMP) || defined(CONFIG_PREEMPTION)
#error "the agent wants a kernel that is neither preemptible nor SMP: interrupts off is all that it locks with"
#endif

#define AGENT_ENTRY_BYTES 5 /* -fpatchable-function-entry=5 */
#define AGENT_ARGUMENTS 6

/* What the trampoline has saved, in the order of its pushes, lowest address first. */
struct agent_regs {
	unsigned long rax, r9, r8, rcx, rdx, rsi, rdi;
	unsigned long rbp;
	unsigned long ip; /* behind the patched NOPs */
	unsigned long caller; /* the probed function's return address */
};

struct agent_place { /* of a followed packet. Both words go to the host with a verdict on it */
	u32 packet; /* its number; 0: it is not followed */
	u32 call; /* of its step, or 0 */
};

struct agent_probe { /* one patched function. In one line of the cache: few are in it still when a packet comes */
	struct hlist_node node;
	unsigned long address;
	struct list_head rules; /* in the order in which they were armed: the first match wins */
	struct agent_tracing tracing; /* if it is a trace's, too */
	u16 number; /* in that trace */
	bool traced;
	struct agent_probe *next; /* the one that was passed after this one, the last time: it is again, most often */
} __aligned(64);

struct agent_rule {
	struct list_head list;
	struct agent_probe *probe;
	struct agent_arm arm;
	struct agent_filter *filter; /* NULL: every packet */
	u16 number;
	bool acts; /* agent_verdict_acts() */
	u64 occurrence;
	u32 random;
	u64 sent_ns; /* of a rate: when the packets so far have passed */
};

/* tasks.c */
void agent_tell_tasks(void);

/* main.c: commands */
void agent_stand_still(const u64 *waits);

/* channel.c: memory and socket shared with the host */
extern struct agent_shared *agent_shared;
long agent_host_call(long number, long a, long b, long c, long d, long e, long f);
int agent_channel_open(int memory_fd, int socket_fd, int clock_fd);
void agent_channel_ready(void);
void agent_channel_close(void);
void agent_steps_prepare(void);
void agent_ring(void);
void agent_ring_soon(void);
bool agent_listen(u32 *farewells);
void agent_say_of_time(u32 op, s64 value);
void agent_await_doorbell(void);

/* branch.c: a second kernel like this one */
int agent_branch_open(int clock_fd);
void agent_branch_close(void);

/* hostfile.c: descriptors of the host's as files of the guest's */
int agent_hostfiles_open(int socket_fd);
void agent_hostfiles_close(void);

/* ring.c, ring.h: records in that memory */
void *agent_event_begin(u16 kind, u16 rule, u32 bytes);
void agent_event_end(const void *event);
void agent_event_end_quietly(const void *event);
void agent_steps_quiet(void);
extern u64 agent_ends_owed; /* held packets whose end event is not written yet */
struct agent_record *agent_command(void);
void agent_commands_forget(void);
void agent_command_done(const struct agent_record *record);

/* tell.c: events for the host */
bool agent_tell_hit(const struct agent_rule *rule, const struct agent_regs *regs, const struct sk_buff *skb, u64 packet,
		    struct agent_place place);
void agent_tell_end(u16 kind, u16 rule, u64 packet, u32 cause, bool quietly);
void agent_answer(u64 cookie, long result);
__printf(1, 2) void agent_note(const char *format, ...);

/* what became of a rule's packets */
static inline struct agent_counts *agent_counts(u16 rule)
{
	return &agent_shared->counts[rule];
}

/* probe.c, probe.h: which function has which rules; patching */
int agent_write_entry(unsigned long address, const u8 *entry);
int agent_arm(const struct agent_arm *arm);
int agent_disarm(u16 number);
bool agent_disarm_all(void);
void agent_disarm_module(struct module *module);
int agent_trace_probe(const struct agent_trace_probe *command);
bool agent_unfollow(void);

/* stack.c: who called */
unsigned int agent_stack(u64 text_start, u64 text_end, const struct agent_regs *regs, const u64 **words);

/* calls.c, calls.h: the traced calls of each stack */
int agent_calls_begin(void);
void agent_calls_end(void);

/* follow.c, follow.h: the packets that are followed */
int agent_follow(const struct agent_follow *follow);
void agent_follow_end(void);

/* entry.c: a traced function is entered */
struct agent_place agent_entered(const struct agent_probe *probe, struct agent_regs *regs);
long agent_resume(unsigned long address, const unsigned long *arguments, struct sk_buff *skb, u32 flags);

/* again.c: a function gets a packet that was held there, or a copy */
struct agent_again { /* of the rule that has held or copied it */
	s32 taken_from, taken_to;
	u16 rule;
	bool transmits;
};
struct agent_again agent_again_by(u16 rule, const struct agent_arm *arm);
bool agent_may_go_on(const struct agent_again *again, const unsigned long *arguments, const struct sk_buff *skb);
void agent_call_again(const struct agent_again *again, unsigned long address, const unsigned long *arguments,
		      struct sk_buff *skb, u32 flags);

/* return.c: and returns */
unsigned long agent_returned(struct agent_regs *regs);
void agent_resumed(const unsigned long *slot, unsigned long value);

/* filter.c: which packets */
struct agent_filter {
	struct bpf_prog *program; /* or NULL */
	u16 conditions;
	struct agent_condition condition[];
};
int agent_filter_create(struct agent_filter **made, const void *instructions, u16 length, u16 conditions, const void *end);
void agent_filter_free(struct agent_filter *filter);
bool agent_takes(const struct agent_filter *filter, struct sk_buff *skb);

/* rule.c: does a packet match? */
struct agent_rule *agent_match(struct agent_probe *probe, const struct agent_regs *regs, struct sk_buff **skb,
			       struct agent_rule **behind, bool *is_inside);
bool agent_takes_call(const struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff **skb);
u32 agent_random(struct agent_rule *rule);

/* inside.c: rules that match inside a call of another function */
int agent_surround(struct agent_regs *regs);
bool agent_is_inside(u16 rule);
void agent_inside_forget(u16 rule);

/* hit.c: what the trampoline calls */
int agent_hit(struct agent_regs *regs);
void agent_trampoline(void);
void agent_return(void);

/* verdict.c: what is done with a packet that matches */
extern struct agent_by_hand agent_by_hand;
void agent_stop(const struct sk_buff *skb);
bool agent_hold_by_hand(struct agent_regs *regs, struct sk_buff *skb, struct agent_place place);
bool agent_verdict_fits(const struct agent_arm *arm);
bool agent_verdict_acts(const struct agent_arm *arm);
u32 agent_verdict_begin(struct agent_rule *rule, const struct agent_rule *behind, struct agent_regs *regs,
			struct sk_buff *skb, struct agent_place place);
int agent_verdict_finish(u32 verdict, const struct agent_rule *rule, struct agent_regs *regs, struct sk_buff *skb);

/* held.c: packets that are set aside */
int agent_held_open(void);
void agent_held_close(void);
u64 agent_hold(struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff *skb, struct agent_place place);
int agent_decide(const struct agent_decide *decide);
bool agent_goes_on(u64 packet);
bool agent_is_behind(const struct agent_rule *rule);
bool agent_follow_held(const struct agent_rule *rule, struct agent_regs *regs);
void agent_be_patient(void);
void agent_release_rule(u16 rule);
void agent_held_flush(void);

/* measure.c: what a probe costs */
void agent_measured(struct sk_buff *skb);
long agent_measure(const struct agent_decide *decide);

/* link.c: frames that the links have lost */
void agent_count_losses(void);

/* edit.c: write a held packet's bytes back */
int agent_write(struct sk_buff *skb, const struct agent_write *write);

static inline unsigned long agent_argument(const struct agent_regs *regs, unsigned int number)
{
	/* rdi, rsi, rdx, rcx, r8, r9: each lies below the one before. */
	return ((const unsigned long *)regs)[offsetof(struct agent_regs, rdi) / sizeof(long) - number];
}

/* Call a probed function behind its NOPs, with a packet as the caller would have passed it. */
static inline long agent_call(unsigned long address, const unsigned long *a)
{
	typedef long (*agent_entry)(unsigned long, unsigned long, unsigned long, unsigned long, unsigned long,
				    unsigned long);

	return ((agent_entry)(address + AGENT_ENTRY_BYTES))(a[0], a[1], a[2], a[3], a[4], a[5]);
}

#endif
