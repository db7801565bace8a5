// SPDX-License-Identifier: GPL-2.0-only
/*
 * Held packets, each with its function's arguments and the references that they need (keep.c). A packet is in the hash table
 * until a decision or its timer, and then in the queue. A tasklet runs the queue: a function of the network stack expects to
 * be called with bottom halves off.
 */
#include <linux/hashtable.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/ktime.h>
#include <linux/math64.h>
#include <linux/mm.h>
#include <linux/netdevice.h>
#include <linux/slab.h>
#include <linux/version.h>
#include <net/net_namespace.h>
#include <net/sock.h>

#include "clock.h"
#include "keep.h"

#define MOST_SPIN_NS 100000
#define AT_ONCE 64 /* packets, with interrupts off, or in one run of the tasklet */
#define FLUSHED 256 /* packets that go on before DISARM is answered; more would keep the host waiting */
#define LOOK_EVERY 16 /* holds from one look at the free memory to the next */

struct agent_held {
	struct hlist_node node; /* while it is held */
	struct list_head list; /* in its rule's list, in the order of arrival; then in the queue */
	struct hrtimer timer;
	ktime_t due;
	unsigned long address;
	unsigned long arguments[AGENT_ARGUMENTS];
	struct agent_kept kept;
	struct agent_again again;
	struct sk_buff *skb;
	u64 packet;
	u32 reason;
	u16 rule;
	u8 skb_argument;
	u8 cause; /* enum agent_cause: why it is held no more */
	bool leased; /* its timer is the lease */
	bool drop;
	bool quiet; /* nobody waits for its end event */
	bool ended; /* its end event is written */
	bool in_order; /* what its function gets later goes on after it */
	bool follows; /* it only waits behind one that is in order; the host does not know of it */
};

/* A rule's packets. They may outlive it: it is replaced, or has ended when they leave the queue. */
struct agent_held_by {
	struct list_head held; /* in the order of arrival */
	unsigned int in_order; /* packets: held, or in the queue */
};

static DEFINE_HASHTABLE(held_packets, 12);
static struct agent_held_by held_by[AGENT_RULES];
static LIST_HEAD(queue);
static u64 last_packet;
static s64 wakes_late_ns;
static bool memory_is_short;
static u64 undecided; /* the packet for which the kernel stands still until the host decides, or 0 */
static int impatience; /* not 0: it stands still for none */

static void run_queue_for_a_while(struct tasklet_struct *tasklet);
static DECLARE_TASKLET(queue_tasklet, run_queue_for_a_while);

/* Interrupts have been off since begin_ns: record the longest time for the host. */
static void note_off_since(u64 begin_ns)
{
	const u64 took_ns = agent_now_ns() - begin_ns;

	if (took_ns > agent_shared->longest_off_ns)
		agent_shared->longest_off_ns = took_ns;
}

/* Interrupts are off. */
static void set_aside(struct agent_held *held)
{
	hash_add(held_packets, &held->node, held->packet);
	list_add_tail(&held->list, &held_by[held->rule].held);
	held_by[held->rule].in_order += held->in_order;
	agent_shared->held++;
	agent_ends_owed += !held->ended;
}

/* A packet has left the queue. Interrupts are off. */
static void note_gone(const struct agent_held *held)
{
	held_by[held->rule].in_order -= held->in_order;
}

static void count_end(const struct agent_held *held)
{
	struct agent_counts *counts = agent_counts(held->rule);

	if (held->drop)
		counts->dropped++;
	else
		counts->released++;
	if (held->cause == AGENT_LEASE)
		counts->expired++;
	else if (held->cause != AGENT_DECIDED)
		counts->given_up++;
}

/* Before the packet goes on: its end event must precede the events that it causes, such as a hit of the reply. */
static void report_end(struct agent_held *held)
{
	count_end(held);
	agent_tell_end(held->drop ? AGENT_DROPPED : AGENT_RELEASED, held->rule, held->packet, held->cause, held->quiet);
	agent_ends_owed--;
	held->ended = true;
}

/* Move a packet from the hash table to the queue; its cause is set. Interrupts are off. */
static void enqueue_one(struct agent_held *held)
{
	tasklet_schedule(&queue_tasklet); /* first: the packet goes before the doorbell's tasklet */
	if (!held->ended)
		report_end(held);
	hash_del(&held->node);
	list_move_tail(&held->list, &queue);
	agent_shared->held--;
	hrtimer_try_to_cancel(&held->timer);
}

/* Let go what waits behind no packet of its rule any more. Interrupts are off. */
static void enqueue_followers(u16 rule)
{
	struct list_head *ours = &held_by[rule].held;
	struct agent_held *first;

	while ((first = list_first_entry_or_null(ours, struct agent_held, list)) && first->follows)
		enqueue_one(first);
}

/* And what waits behind it. */
static void enqueue(struct agent_held *held)
{
	enqueue_one(held);
	if (held->in_order)
		enqueue_followers(held->rule);
}

/*
 * The host wakes a sleeping guest some 80 us late. So timers are set earlier, by what the timers before were late; an idle
 * processor spins here until the time has come, a busy one restarts the timer.
 */
static enum hrtimer_restart timer_expires(struct hrtimer *timer)
{
	struct agent_held *held = container_of(timer, struct agent_held, timer);
	s64 late_ns = ktime_to_ns(ktime_sub(ktime_get(), hrtimer_get_expires(timer)));
	unsigned long flags;

	if (is_idle_task(current)) {
		wakes_late_ns += (clamp_t(s64, late_ns, 0, MOST_SPIN_NS) - wakes_late_ns) / 8;
		while (ktime_before(ktime_get(), held->due))
			cpu_relax();
	} else if (ktime_before(ktime_get(), held->due)) {
		hrtimer_set_expires(timer, held->due);
		return HRTIMER_RESTART;
	}
	local_irq_save(flags);
	if (held->leased) {
		held->cause = AGENT_LEASE;
		pr_notice_ratelimited("skblab agent: nobody decided on a held packet in time; it goes on (rule %u)\n",
				      held->rule);
	}
	enqueue(held);
	local_irq_restore(flags);
	return HRTIMER_NORESTART;
}

static void set_up_timer(struct agent_held *held)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&held->timer, timer_expires, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
	hrtimer_init(&held->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	held->timer.function = timer_expires;
#endif
}

static void start_timer(struct agent_held *held, ktime_t from, u64 after_ns)
{
	held->due = ktime_add_safe(from, min_t(u64, after_ns, KTIME_MAX));
	hrtimer_start(&held->timer, ktime_sub_ns(held->due, min_t(u64, wakes_late_ns, after_ns / 2)),
		      HRTIMER_MODE_ABS_HARD);
}

/* Held packets leave a quarter of the memory alone: a guest that runs out of memory panics. */
static bool is_memory_short(void)
{
	static unsigned int since;

	if (!(since++ % LOOK_EVERY) || memory_is_short)
		memory_is_short = si_mem_available() < (long)(totalram_pages() / 4);
	return memory_is_short;
}

/*
 * On its way between two nodes of one guest a packet still counts as the sender's, up to ip_rcv_core() (veth does not orphan
 * it). A link ends that: else the sender's TCP would believe what is held here to be in its own queue, and would not send it
 * again (net/ipv4/tcp_output.c skb_still_in_host_queue()). The other destructors are those of a receiver's socket that was
 * looked up early.
 */
static void leave_sender(struct sk_buff *skb)
{
	if (skb->sk && skb->skb_iif && skb->destructor != sock_edemux && skb->destructor != sock_efree &&
	    skb->destructor != sock_pfree)
		skb_orphan(skb);
}

/* How long a packet waits until those before it, and itself, have passed at the rule's rate. */
static u64 rate_delay_ns(struct agent_rule *rule, const struct sk_buff *skb, u64 now_ns)
{
	const u64 bits = (u64)skb->len * BITS_PER_BYTE;

	rule->sent_ns = max(rule->sent_ns, now_ns) + div64_u64(bits * NSEC_PER_SEC, rule->arm.argument);
	return max(rule->sent_ns - now_ns, 1ull);
}

/* Take a packet with its references; return NULL, counted, where it cannot be held. Interrupts are off. */
static struct agent_held *take(const struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff *skb)
{
	const struct agent_arm *arm = &rule->arm;
	struct agent_held *held = is_memory_short() ? NULL : kmalloc(sizeof(*held), GFP_ATOMIC | __GFP_NOWARN);

	if (!held) {
		agent_counts(rule->number)->no_memory++;
		return NULL;
	}
	held->address = rule->probe->address;
	held->skb = skb;
	held->packet = last_packet + 1;
	held->reason = arm->reason;
	held->rule = rule->number;
	held->again = agent_again_by(rule->number, arm);
	held->skb_argument = arm->skb_argument;
	held->cause = AGENT_DECIDED;
	held->leased = held->drop = held->quiet = held->ended = held->follows = false;
	held->in_order = arm->in_order;
	for (unsigned int i = 0; i < AGENT_ARGUMENTS; i++)
		held->arguments[i] = agent_argument(regs, i);
	leave_sender(skb);
	if (!agent_keep(&held->kept, arm, held->arguments, skb)) {
		agent_counts(rule->number)->going++;
		kfree(held);
		return NULL;
	}
	set_up_timer(held);
	return held;
}

/* Hold a packet and report the hit; return its number, or 0, counted, where it cannot be held. Interrupts are off. */
u64 agent_hold(struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff *skb, struct agent_place place)
{
	const struct agent_arm *arm = &rule->arm;
	const ktime_t arrived = ktime_get(); /* the delay begins here, not after the report */
	u64 delay_ns = arm->argument ? rate_delay_ns(rule, skb, ktime_to_ns(arrived)) : arm->delay_ns;
	const bool timed = delay_ns;
	struct agent_held *held = take(rule, regs, skb);

	if (!held)
		return 0;
	if (!agent_tell_hit(rule, regs, skb, held->packet, place) && !timed) { /* no one would release it */
		agent_counts(rule->number)->unreported++;
		agent_unkeep(&held->kept);
		kfree(held);
		return 0;
	}
	held->leased = !timed && arm->lease_ns;
	set_aside(held);
	if (timed && arm->jitter_ns) {
		const u64 drawn = (u64)agent_random(rule) << 32 | agent_random(rule);
		const s64 jitter = (s64)(drawn % (2 * arm->jitter_ns + 1)) - (s64)arm->jitter_ns;

		delay_ns = max_t(s64, (s64)delay_ns + jitter, 0);
	}
	if (timed || held->leased)
		start_timer(held, arrived, timed ? delay_ns : arm->lease_ns);
	return last_packet = held->packet;
}

/* Does a packet that a rule in order has held still wait, or its followers do? Interrupts are off. */
bool agent_is_behind(const struct agent_rule *rule)
{
	return held_by[rule->number].in_order;
}

/* Have a packet go on after those of the rule before it; false, counted, where it cannot be held. Interrupts are off. */
bool agent_follow_held(const struct agent_rule *rule, struct agent_regs *regs)
{
	struct sk_buff *skb = (struct sk_buff *)agent_argument(regs, rule->arm.skb_argument);
	struct agent_held *held = take(rule, regs, skb);

	if (!held)
		return false;
	held->follows = held->ended = true;
	last_packet = held->packet;
	set_aside(held);
	enqueue_followers(held->rule);
	agent_counts(held->rule)->waited++;
	regs->rax = (long)rule->arm.held_returns;
	return true;
}

/* Resume or free the first packet of the queue; false where the queue is empty. Bottom halves are off. */
static bool run_queue_once(void)
{
	struct agent_held *held;
	unsigned long flags;

	local_irq_save(flags);
	held = list_first_entry_or_null(&queue, struct agent_held, list);
	if (held) {
		list_del(&held->list);
		note_gone(held);
	}
	local_irq_restore(flags);
	if (!held)
		return false;
	hrtimer_cancel(&held->timer);
	if (held->drop) {
		kfree_skb_reason(held->skb, held->reason);
	} else {
		held->arguments[held->skb_argument] = (unsigned long)held->skb;
		agent_check_owner(held->skb);
		rcu_read_lock();
		agent_call_again(&held->again, held->address, held->arguments, held->skb, AGENT_RESUMED);
		rcu_read_unlock();
	}
	agent_unkeep(&held->kept);
	kfree(held);
	return true;
}

/* In steps: other softirqs need the processor, too. */
static void run_queue_for_a_while(struct tasklet_struct *tasklet)
{
	for (unsigned int left = AT_ONCE; left; left--)
		if (!run_queue_once())
			return;
	tasklet_schedule(&queue_tasklet);
}

/* Run up to *most* packets of the queue now instead of in the tasklet. Process context. */
static void run_queue_now(unsigned int most)
{
	local_bh_disable();
	while (most-- && run_queue_once())
		;
	local_bh_enable();
}

void agent_held_flush(void)
{
	run_queue_now(UINT_MAX);
}

static struct agent_held *held_packet(u64 packet)
{
	struct agent_held *held;

	hash_for_each_possible(held_packets, held, node, packet)
		if (held->packet == packet)
			return held;
	return NULL;
}

/* Copy a held packet and queue the copy. Interrupts are off. */
static int copy_held(const struct agent_held *held)
{
	struct agent_held *copy;

	if (held->kept.by_packet) /* its socket is freed with the packet, and a copy does not keep it alive */
		return -ENOTCONN;
	copy = is_memory_short() ? NULL : kmemdup(held, sizeof(*held), GFP_ATOMIC | __GFP_NOWARN);
	if (!copy)
		return -ENOMEM;
	copy->skb = skb_copy(held->skb, GFP_ATOMIC | __GFP_NOWARN);
	if (!copy->skb) {
		kfree(copy);
		return -ENOMEM;
	}
	agent_keep_again(&copy->kept);
	copy->packet = ++last_packet;
	set_up_timer(copy);
	set_aside(copy);
	agent_counts(copy->rule)->duplicated++;
	enqueue(copy);
	return 0;
}

static int decide_once(const struct agent_decide *decide, struct agent_held *held)
{
	const struct agent_write *write = (const struct agent_write *)decide; /* their heads are the same */

	switch (decide->record.kind) {
	case AGENT_RELEASE:
		held->quiet = decide->number == AGENT_QUIET;
		held->leased = false;
		if (decide->after_ns) {
			start_timer(held, ktime_get(), decide->after_ns);
			return 0;
		}
		break;
	case AGENT_DISCARD:
		held->quiet = decide->number == AGENT_QUIET;
		held->drop = true;
		break;
	case AGENT_COPY:
		return copy_held(held);
	case AGENT_LATER:
		return 0;
	case AGENT_WRITE:
		if (sizeof(*write) + write->data_bytes > write->record.bytes)
			return -EINVAL;
		return agent_write(held->skb, write);
	default:
		return -EINVAL;
	}
	enqueue(held);
	return 0;
}

/* Carry out a decision about one packet. Copies are made one at a time: interrupts are off for each. */
int agent_decide(const struct agent_decide *decide)
{
	const bool copies = decide->record.kind == AGENT_COPY;
	int error = 0;

	if (decide->record.kind == AGENT_LATER && !decide->packet) {
		impatience += decide->number;
		undecided = 0;
		return 0;
	}
	if (decide->packet == undecided && !copies && decide->record.kind != AGENT_WRITE)
		undecided = 0;

	if (copies && (decide->number < 0 || decide->number > AGENT_MOST_COPIES))
		return -EINVAL;
	for (s32 left = copies ? decide->number : 1; left > 0 && !error; left--) {
		struct agent_held *held;
		unsigned long flags;

		local_irq_save(flags);
		held = held_packet(decide->packet);
		error = held ? decide_once(decide, held) : -ENOENT;
		local_irq_restore(flags);
	}
	return error;
}

/*
 * Have the host decide on a packet now, while the kernel stands still: true if it goes on at once, and so keeps its place.
 * Else it is held, or waits to be dropped. Interrupts are off.
 */
bool agent_goes_on(u64 packet)
{
	struct agent_held *held = held_packet(packet);

	if (impatience)
		return false;
	undecided = packet;
	agent_stand_still(&undecided);
	undecided = 0;
	if (!held->ended || held->drop)
		return false;
	list_del(&held->list); /* from the queue */
	note_gone(held);
	agent_unkeep(&held->kept);
	kfree(held);
	return true;
}

/* The host that was impatient is gone. */
void agent_be_patient(void)
{
	impatience = 0;
}

/*
 * Release the packets that a rule holds, oldest first. One event ends them all: reading 10,000 events would take the host
 * longer than the release.
 */
void agent_release_rule(u16 rule)
{
	struct list_head *ours = &held_by[rule].held;
	struct agent_held *held;
	unsigned long flags;
	bool any = false, more = true;

	while (more) {
		u64 begin_ns;

		local_irq_save(flags);
		begin_ns = agent_now_ns();
		for (unsigned int left = AT_ONCE; left && !list_empty(ours); left--) {
			held = list_first_entry(ours, struct agent_held, list);
			if (!held->follows) {
				count_end(held);
				agent_ends_owed--;
				held->ended = any = true;
			}
			enqueue_one(held);
		}
		more = !list_empty(ours);
		if (!more && any)
			agent_tell_end(AGENT_RELEASED, rule, AGENT_ALL, AGENT_DECIDED, false);
		note_off_since(begin_ns);
		local_irq_restore(flags);
	}
	run_queue_now(FLUSHED); /* a few packets have all gone on when the host gets its answer */
}

/* Drop the packets that need a device or a namespace that is going; returns how many. Process context. */
static unsigned int give_up(const void *object, enum agent_cause cause)
{
	struct hlist_node *next;
	struct agent_held *held;
	unsigned int bucket, count = 0;
	unsigned long flags;

	for (bucket = 0; bucket < HASH_SIZE(held_packets); bucket++) {
		local_irq_save(flags);
		hlist_for_each_entry_safe(held, next, &held_packets[bucket], node)
			if (agent_keeps(&held->kept, object)) {
				held->drop = true;
				held->cause = cause;
				if (held->follows)
					agent_counts(held->rule)->given_up++;
				enqueue_one(held); /* its followers may be the next ones here */
				count++;
			}
		local_irq_restore(flags);
	}
	for (unsigned int rule = 0; count && rule < AGENT_RULES; rule++) {
		local_irq_save(flags);
		enqueue_followers(rule);
		local_irq_restore(flags);
	}
	agent_held_flush(); /* the queue, too: afterwards no packet needs the object */
	return count;
}

/* A device is going, or moves to another namespace: net/core/dev.c waits for its last reference. */
static int device_changes(struct notifier_block *block, unsigned long event, void *info)
{
	const struct net_device *device = netdev_notifier_info_to_dev(info);
	unsigned int count;

	if (event != NETDEV_UNREGISTER)
		return NOTIFY_DONE;
	count = give_up(device, AGENT_DEVICE_GOES);
	if (count)
		pr_notice("skblab agent: %s goes: %u held packets were dropped\n", device->name, count);
	return NOTIFY_DONE;
}

/* pre_exit: before the kernel waits for the namespace's conntrack entries and for references to its devices. */
static void __net_exit namespace_goes(struct net *net)
{
	unsigned int count = give_up(net, AGENT_NAMESPACE_GOES);

	if (count)
		pr_notice("skblab agent: network namespace %u goes: %u held packets were dropped\n", net->ns.inum, count);
}

static struct notifier_block devices = { .notifier_call = device_changes };
static struct pernet_operations namespaces = { .pre_exit = namespace_goes };

int agent_held_open(void)
{
	int error;

	for (unsigned int rule = 0; rule < AGENT_RULES; rule++)
		INIT_LIST_HEAD(&held_by[rule].held);
	error = register_pernet_subsys(&namespaces);
	if (error)
		return error;
	error = register_netdevice_notifier(&devices);
	if (error)
		unregister_pernet_subsys(&namespaces);
	return error;
}

/* Called when no packet is held and no rule is armed. */
void agent_held_close(void)
{
	unregister_netdevice_notifier(&devices);
	unregister_pernet_subsys(&namespaces);
	agent_held_flush();
	tasklet_kill(&queue_tasklet);
}
