// SPDX-License-Identifier: GPL-2.0-only
/*
 * Packets that are set aside: the function's arguments, and references to all that they point to. A packet is in one of
 * two places: among the held, until a decision or its timer, and then in the queue, which a tasklet empties, for a
 * function of the network stack expects to be called with bottom halves off.
 */
#include <linux/hashtable.h>
#include <linux/hrtimer.h>
#include <linux/interrupt.h>
#include <linux/slab.h>
#include <linux/ktime.h>
#include <linux/version.h>
#include <net/dst.h>
#include <net/sock.h>

#include "agent.h"

#define MOST_WAITED_FOR_NS 100000

struct agent_held {
	struct hlist_node node; /* while it is held */
	struct list_head queue; /* once it goes */
	struct hrtimer timer;
	ktime_t due;
	unsigned long address;
	unsigned long arguments[AGENT_ARGUMENTS];
	struct sk_buff *skb;
	u64 packet;
	u32 reason;
	u16 rule;
	u8 skb_argument, device_arguments, socket_arguments;
	bool drop;
};

static DEFINE_HASHTABLE(held_packets, 12);
static LIST_HEAD(queue);
static u64 last_packet;
static s64 wakes_late_ns;

static void run_queue(struct tasklet_struct *tasklet);
static DECLARE_TASKLET(queue_tasklet, run_queue);

static void take_references(struct agent_held *held)
{
	if (held->skb->dev)
		dev_hold(held->skb->dev);
	for (unsigned int i = 0; i < AGENT_ARGUMENTS; i++) {
		if (held->device_arguments & BIT(i) && held->arguments[i])
			dev_hold((struct net_device *)held->arguments[i]);
		if (held->socket_arguments & BIT(i) && held->arguments[i])
			sock_hold((struct sock *)held->arguments[i]);
	}
}

static void drop_references(struct agent_held *held, struct net_device *device)
{
	if (device)
		dev_put(device);
	for (unsigned int i = 0; i < AGENT_ARGUMENTS; i++) {
		if (held->device_arguments & BIT(i) && held->arguments[i])
			dev_put((struct net_device *)held->arguments[i]);
		if (held->socket_arguments & BIT(i) && held->arguments[i])
			sock_put((struct sock *)held->arguments[i]);
	}
}

/* Move a packet from the held to the queue. Interrupts are off. */
static void enqueue(struct agent_held *held)
{
	hash_del(&held->node);
	agent_shared->held--;
	list_add_tail(&held->queue, &queue);
	tasklet_schedule(&queue_tasklet);
}

/*
 * The host wakes a guest that sleeps some 80 us after its timer's time. So timers are set that much earlier, as learned
 * from those before, and a processor that has nothing to do waits here for the rest; another comes back when it is time.
 */
static enum hrtimer_restart its_time_has_come(struct hrtimer *timer)
{
	struct agent_held *held = container_of(timer, struct agent_held, timer);
	s64 late_ns = ktime_to_ns(ktime_sub(ktime_get(), hrtimer_get_expires(timer)));
	unsigned long flags;

	if (is_idle_task(current)) {
		wakes_late_ns += (clamp_t(s64, late_ns, 0, MOST_WAITED_FOR_NS) - wakes_late_ns) / 8;
		while (ktime_before(ktime_get(), held->due))
			cpu_relax();
	} else if (ktime_before(ktime_get(), held->due)) {
		hrtimer_set_expires(timer, held->due);
		return HRTIMER_RESTART;
	}
	local_irq_save(flags);
	enqueue(held);
	local_irq_restore(flags);
	return HRTIMER_NORESTART;
}

static void set_up_timer(struct agent_held *held)
{
#if LINUX_VERSION_CODE >= KERNEL_VERSION(6, 13, 0)
	hrtimer_setup(&held->timer, its_time_has_come, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
#else
	hrtimer_init(&held->timer, CLOCK_MONOTONIC, HRTIMER_MODE_ABS_HARD);
	held->timer.function = its_time_has_come;
#endif
}

static void start_timer(struct agent_held *held, ktime_t from, u64 after_ns)
{
	held->due = ktime_add_ns(from, after_ns);
	hrtimer_start(&held->timer, ktime_sub_ns(held->due, min_t(u64, wakes_late_ns, after_ns / 2)),
		      HRTIMER_MODE_ABS_HARD);
}

/* Set a packet aside and tell the host; 0 where that cannot be. Interrupts are off. */
u64 agent_hold(struct agent_rule *rule, const struct agent_regs *regs, struct sk_buff *skb)
{
	const struct agent_arm *arm = &rule->arm;
	u64 delay_ns = arm->delay_ns;
	const ktime_t arrived = ktime_get(); /* telling the host may take its time: that is not the packet's */
	struct agent_held *held;
	bool lasts;

	rcu_read_lock();
	lasts = !skb_dst(skb) || skb_dst_force(skb);
	rcu_read_unlock();
	if (!lasts)
		return 0;
	held = kmalloc(sizeof(*held), GFP_ATOMIC);
	if (!held)
		return 0;
	held->address = rule->probe->address;
	held->skb = skb;
	held->packet = last_packet + 1;
	held->reason = arm->reason;
	held->rule = rule->number;
	held->skb_argument = arm->skb_argument;
	held->device_arguments = arm->device_arguments;
	held->socket_arguments = arm->socket_arguments;
	held->drop = false;
	for (unsigned int i = 0; i < AGENT_ARGUMENTS; i++)
		held->arguments[i] = agent_argument(regs, i);
	if (!agent_tell_hit(rule, regs, skb, held->packet) && !delay_ns) { /* nobody would ever release it */
		kfree(held);
		return 0;
	}
	take_references(held);
	set_up_timer(held);
	hash_add(held_packets, &held->node, held->packet);
	agent_shared->held++;
	if (delay_ns) {
		if (arm->jitter_ns) {
			s64 jitter = (s64)(get_random_u64() % (2 * arm->jitter_ns + 1)) - (s64)arm->jitter_ns;

			delay_ns = max_t(s64, (s64)delay_ns + jitter, 0);
		}
		start_timer(held, arrived, delay_ns);
	}
	return last_packet = held->packet;
}

/* Told and counted before it goes: what comes of it, an answer or the next hit, is told after that. */
static void say_goodbye(const struct agent_held *held)
{
	struct agent_counts *counts = agent_counts(held->rule);

	if (held->drop)
		counts->dropped++;
	else
		counts->released++;
	agent_tell_end(held->drop ? AGENT_DROPPED : AGENT_RELEASED, held->rule, held->packet);
}

static void run_queue(struct tasklet_struct *tasklet)
{
	struct net_device *device;
	struct agent_held *held;
	unsigned long flags;

	for (;;) {
		local_irq_save(flags);
		held = list_first_entry_or_null(&queue, struct agent_held, queue);
		if (held) {
			list_del(&held->queue);
			say_goodbye(held);
		}
		local_irq_restore(flags);
		if (!held)
			return;
		hrtimer_cancel(&held->timer);
		device = held->skb->dev;
		if (held->drop) {
			kfree_skb_reason(held->skb, held->reason);
		} else {
			held->arguments[held->skb_argument] = (unsigned long)held->skb;
			rcu_read_lock();
			agent_resume(held->address, held->arguments, held->skb);
			rcu_read_unlock();
		}
		drop_references(held, device);
		kfree(held);
	}
}

static struct agent_held *held_packet(u64 packet)
{
	struct agent_held *held;

	hash_for_each_possible(held_packets, held, node, packet)
		if (held->packet == packet)
			return held;
	return NULL;
}

static int copy_held(struct agent_held *held, s32 number)
{
	while (number-- > 0) {
		struct agent_held *copy = kmemdup(held, sizeof(*held), GFP_ATOMIC);

		if (!copy)
			return -ENOMEM;
		copy->skb = skb_copy(held->skb, GFP_ATOMIC);
		if (!copy->skb) {
			kfree(copy);
			return -ENOMEM;
		}
		copy->packet = ++last_packet;
		set_up_timer(copy);
		take_references(copy);
		hash_add(held_packets, &copy->node, copy->packet);
		agent_shared->held++;
		agent_counts(copy->rule)->duplicated++;
		enqueue(copy);
	}
	return 0;
}

/* Carry out what the host decided for one packet. Interrupts are off. */
int agent_decide(const struct agent_decide *decide)
{
	struct agent_held *held = held_packet(decide->packet);

	if (!held)
		return -ENOENT;
	switch (decide->record.kind) {
	case AGENT_RELEASE:
		if (decide->after_ns) {
			start_timer(held, ktime_get(), decide->after_ns);
			return 0;
		}
		break;
	case AGENT_DISCARD:
		held->drop = true;
		break;
	case AGENT_COPY:
		return copy_held(held, decide->number);
	case AGENT_WRITE:
		return agent_write(held->skb, decide + 1, decide->data_bytes, decide->number);
	default:
		return -EINVAL;
	}
	hrtimer_try_to_cancel(&held->timer);
	enqueue(held);
	return 0;
}

/* Release what a rule holds, oldest first. */
void agent_release_rule(u16 rule)
{
	struct hlist_node *next;
	struct agent_held *held;
	unsigned long flags;
	u64 packet;

	local_irq_save(flags);
	if (agent_shared->held) {
		LIST_HEAD(chosen);
		unsigned int bucket;

		hash_for_each_safe(held_packets, bucket, next, held, node)
			if (held->rule == rule) {
				struct agent_held *other;
				struct list_head *place = &chosen;

				packet = held->packet;
				hash_del(&held->node);
				agent_shared->held--;
				list_for_each_entry_reverse(other, &chosen, queue)
					if (other->packet < packet) {
						place = &other->queue;
						break;
					}
				list_add(&held->queue, place);
				hrtimer_try_to_cancel(&held->timer);
			}
		list_splice_tail(&chosen, &queue);
		tasklet_schedule(&queue_tasklet);
	}
	local_irq_restore(flags);
}

/* Let what is in the queue go now, and not when the tasklet comes to it; process context. */
void agent_held_flush(void)
{
	local_bh_disable();
	run_queue(NULL);
	local_bh_enable();
}
