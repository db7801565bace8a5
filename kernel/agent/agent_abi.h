/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The contract between the agent in the guest and skblab on the host (src/skblab/agent/abi.py mirrors it).
 *
 * Both map the same memory: this header, a ring of commands that the host writes, and two rings that the agent writes, of
 * events and of a trace's steps. Heads and tails count bytes and only grow. A record lies at count % size (a power of two),
 * is a multiple of 8 bytes long and never wraps: where it does not fit before the ring's end, a record of kind 0 fills the
 * rest. A byte on the socket wakes the other side. End of file means that the host is gone: the agent releases and disarms
 * everything. So does a byte of AGENT_FAREWELL, sent for a controller that is gone; the next controller may come then.
 *
 * Times are nanoseconds. Events carry the guest's monotonic clock; clock_guest_ns and clock_host_ns were read together.
 */
#ifndef SKBLAB_AGENT_ABI_H
#define SKBLAB_AGENT_ABI_H

#include <linux/filter.h>
#include <linux/types.h>

#define AGENT_MAGIC 0x736b626c61623036ull /* "skblab06" */
#define AGENT_RULES 8192
#define AGENT_BY_HAND (AGENT_RULES - 1) /* the rule number of packets that a debugger holds; no rule has it */
#define AGENT_TRACE_PROBES 32768
#define AGENT_FAREWELL 1
#define AGENT_MOST_COPIES 1000
#define AGENT_QUIET 1
#define AGENT_ALL 0 /* agent_end.packet: every packet that the rule held */
/* A word on the stack that can be a return address, and its offset from the probed function's return address. */
#define AGENT_STACK_WORD(address, bytes) ((__u64)(bytes) << 48 | (address))
#define AGENT_NO_PACKET 0xff /* skb_argument: the function has no packet: ACCEPT, TRACE or RETURN */
#define AGENT_SEEN_BYTES 128 /* of a packet are compared from step to step */
#define AGENT_LONG_NS 1024
#define AGENT_NOTE_BYTES 64
#define AGENT_FIELDS 8
#define AGENT_FIELD_HOPS 6
#define AGENT_CONDITIONS 16

struct agent_counts { /* of one rule */
	__u64 arrived; /* packets its filter took, whatever the occurrence */
	__u64 passed; /* of those: went on untouched: accepted, another occurrence, or not held after all */
	__u64 traced;
	__u64 held;
	__u64 released;
	__u64 dropped;
	__u64 duplicated; /* copies made */
	__u64 stopped;
	__u64 no_memory; /* packets not held, or copies not made */
	__u64 going; /* not held: their route, socket, device or namespace was going away */
	__u64 unreported; /* not held: the ring of events was full, so the host would not have known of it */
	__u64 too_many; /* not copied: copies of copies would be more than AGENT_MOST_COPIES; or calls not surrounded */
	__u64 expired; /* of the released: by their lease */
	__u64 given_up; /* of the dropped: their device or namespace went away */
	__u64 verdicts; /* packets that got the rule's verdict; a rule with any has fired */
	__u64 waited; /* packets at its function that went on behind one that was being changed */
	__u64 handed_back; /* freed: their function did not take them when they went on, and its caller has gone on */
};

struct agent_shared {
	__u64 magic; /* the agent writes it last, when it is ready */
	__u64 memory_bytes;
	__u64 commands_offset, commands_bytes;
	__u64 events_offset, events_bytes;
	__u64 clock_guest_ns, clock_host_ns;
	__u64 stop_address; /* of agent_stop(): where a debugger stops for the verdict "stop" */
	__u64 measured_address; /* of agent_measured(): a function that does nothing, to be probed */
	__u64 steps_offset, steps_bytes;
	__u64 trampoline_address; /* of agent_trampoline(): a debugger calls it instead of a function */
	__u64 by_hand_address; /* of a struct agent_by_hand, which the debugger fills in before that call */
	__u64 commands_head __attribute__((aligned(64))); /* host */
	__u64 commands_tail __attribute__((aligned(64))); /* agent */
	__u64 events_head __attribute__((aligned(64))); /* agent */
	__u64 lost; /* events that found the ring full */
	__u64 held; /* packets held now */
	__u64 probes; /* functions patched now */
	__u64 farewells; /* of controllers whose rules and traces have ended */
	__u64 events_tail __attribute__((aligned(64))); /* host */
	__u64 host_waits; /* host: ring when there is an event */
	__u64 clock_now_ns, clock_next_ns, clock_rests; /* host, for the next one: the clock of virtual time */
	__u64 steps_head __attribute__((aligned(64))); /* agent */
	__u64 steps_lost; /* steps, returns and kinships that found the ring full */
	__u64 forgotten; /* packets that a trace gave up because it followed too many */
	__u64 unhooked; /* calls whose return is not reported: too deep, or on too many stacks */
	__u64 steps_tail __attribute__((aligned(64))); /* host */
	__u64 steps_wanted; /* host: ring as soon as there are so many bytes of steps */
	__u64 steps_soon_ms; /* host: or for fewer, and for quiet events, after that time */
	__u64 longest_off_ns; /* agent: the longest time with interrupts off during the release of held packets */
	__u64 link_cut; /* as of the last AGENT_LOSSES, of all links: frames longer than their receive buffer */
	__u64 link_no_memory; /* frames for which there was no memory */
	__u64 link_refused; /* frames sent that the host's end refused, or that were dropped before it */
	struct agent_counts counts[AGENT_RULES] __attribute__((aligned(64)));
};

struct agent_record {
	__u32 bytes; /* with this head and padding */
	__u16 kind;
	__u16 rule;
};

/* Commands. Each is answered by an AGENT_DONE with its cookie, unless that is 0. */
enum agent_command_kind {
	AGENT_ARM = 1, /* struct agent_arm, its filter, its conditions. Replaces the rule of that number; what that holds stays held */
	AGENT_DISARM = 2, /* record.rule; what it holds is released */
	AGENT_RELEASE = 3, /* struct agent_decide */
	AGENT_DISCARD = 4,
	AGENT_COPY = 5, /* number: how many */
	AGENT_WRITE = 6, /* struct agent_write, then the packet's new bytes */
	AGENT_MEASURE = 7, /* struct agent_decide, then an Ethernet frame; number: calls. The answer: ns for all of them */
	AGENT_FOLLOW = 8, /* struct agent_follow, its filter, its conditions: begins a trace */
	AGENT_TRACE_PROBE = 9, /* struct agent_trace_probe; record.rule: the probe's number */
	AGENT_UNFOLLOW = 10, /* ends the trace, and disarms its probes */
	AGENT_LOSSES = 11, /* struct agent_decide; count what the links have lost: agent_shared.link_cut, ... */
	/*
	 * struct agent_decide; the kernel stands still no longer for this packet, which stays held. packet 0: for none, while
	 * the sum of these numbers is not 0: one who decides waits for the kernel.
	 */
	AGENT_LATER = 12,
	AGENT_TASKS = 13, /* struct agent_decide; an AGENT_TASK for each program's task comes before the answer */
};

/* What the agent says to the controller of time (struct um_timetravel_msg), which does not answer. */
enum agent_op {
	AGENT_STANDS = 100, /* the kernel stands still, and waits for the host's commands; there may be events */
	AGENT_GOES_ON = 101,
	AGENT_BRANCHES = 102, /* the kernel can be copied: it waits for a struct agent_branch, and its descriptors. Or time: -errno */
	AGENT_BRANCHED = 103, /* time: the number of the new process, or -errno */
};

#define AGENT_BRANCH_SIGNAL 63 /* asks for AGENT_BRANCHES */
#define AGENT_BRANCH_FDS 8
#define AGENT_BRANCH_BYTES (64 << 10) /* of a struct agent_branch, at most */

/* What is done in the copy of a kernel's process, step by step: first with its memory, before it runs on. */
enum agent_branch_kind {
	AGENT_BRANCH_COPY = 0, /* fd: a file, whose first so many bytes go to the descriptor of that number (other) */
	AGENT_BRANCH_REPLACE = 1, /* fd stands for another descriptor that was sent (other) */
	AGENT_BRANCH_MAP = 2, /* so many bytes of fd, from its offset, at an address; flags: PROT_READ, ... */
	AGENT_BRANCH_PAIR = 3, /* fd and other are the ends of a new socket */
	AGENT_BRANCH_EPOLL = 4, /* fd is a new epoll(7) */
	AGENT_BRANCH_WATCH = 5, /* which watches other; flags: its events, address: its data */
};

struct agent_branch_step {
	__u32 kind;
	__u32 flags;
	__s32 fd, other;
	__u64 address, bytes, offset;
};

struct agent_branch {
	__u64 start_userspace, unmap, switch_mm, fix_range, exitcalls; /* addresses of functions of this kernel; 0: it has none */
	__u64 stub_start; /* where the programs' address space ends */
	__u32 programs; /* how many address spaces have a process */
	__u32 fds; /* how many descriptors come with it */
	__u64 steps;
	struct agent_branch_step step[];
};

/* What a function does to a packet of a trace. */
enum agent_role {
	AGENT_PASSED = 0,
	AGENT_BORN = 1, /* it returns a new packet */
	AGENT_COPIED = 2, /* it returns copies, or parts, of its packet: a list by skb->next */
	AGENT_MOVED = 3, /* its packet has another skb->head when it returns */
	AGENT_MERGED = 4, /* argument: the packet that it joins, if the function returns 0 */
	AGENT_COALESCED = 5, /* argument: the packet that it joins, if the function does not return 0 */
	AGENT_DROPS = 6, /* argument: the reason, enum skb_drop_reason */
	AGENT_ENDS = 7, /* the packet's bytes are freed unless another sk_buff shares them */
	AGENT_BOUNDARY = 8, /* a softirq: its calls are not caused by the function that it interrupts */
};

/* How a function gets its packet. */
enum agent_indirection {
	AGENT_DIRECT = 0,
	AGENT_BY_POINTER = 1, /* struct sk_buff ** */
	AGENT_IN_LIST = 2, /* struct list_head *, of one or more packets; each makes a step */
};

/* A number behind pointers, from the struct sk_buff on: skb->dev->ifindex is { offset of dev, offset of ifindex }. */
struct agent_field {
	__u16 offsets[AGENT_FIELD_HOPS]; /* all but the last one: where the next pointer lies */
	__u8 hops; /* offsets used */
	__u8 bytes; /* up to 64 */
	__u8 padding[2];
};

enum agent_operation {
	AGENT_EQUAL = 0,
	AGENT_UNEQUAL = 1,
	AGENT_LESS = 2, /* the field than the value */
	AGENT_AT_MOST = 3,
	AGENT_GREATER = 4,
	AGENT_AT_LEAST = 5,
	AGENT_ANY_BIT = 6, /* of the value is set in the field */
};

enum agent_condition_flags {
	AGENT_SIGNED = 1,
	AGENT_BIG_ENDIAN = 2,
	AGENT_TEXT = 4, /* the field is text, which ends with a zero byte or with the field */
};

struct agent_condition {
	struct agent_field field;
	__u64 value;
	__u8 operation;
	__u8 shift, bits; /* of a bit field; bits 0: all of the field */
	__u8 flags;
	__u8 padding[4];
	char text[32]; /* ends with a zero byte */
};

struct agent_follow {
	struct agent_record record;
	__u64 cookie;
	__u64 text_start, text_end; /* as in struct agent_arm; for functions that drop */
	__u32 fields; /* used */
	__u16 filter_length; /* as in struct agent_arm */
	__u16 conditions;
	struct agent_field field[AGENT_FIELDS];
};

struct agent_tracing { /* what a trace does at a probe */
	__u8 skb_argument;
	__u8 argument; /* see enum agent_role */
	__u8 role;
	__u8 step; /* report each call with a packet */
	__u8 returns; /* and each return */
	__u8 no_drop; /* AGENT_DROPS: the reason that is no drop (SKB_CONSUMED) */
	__u8 no_reason; /* AGENT_DROPS: the reason that may be no drop (NOT_SPECIFIED) */
	__u8 indirection; /* enum agent_indirection */
};

struct agent_trace_probe {
	struct agent_record record;
	__u64 cookie;
	__u64 address;
	struct agent_tracing tracing;
};

struct agent_arm {
	struct agent_record record;
	__u64 cookie;
	__u64 address; /* of the function's first NOP */
	__u64 first, last, every; /* occurrences, from 1; last 0: no end; every 0 or 1: each */
	__u64 delay_ns, jitter_ns; /* of a hold; delay 0: until the host decides */
	__u64 lease_ns; /* of a hold without a delay: it goes on by itself after that; 0: never */
	__u64 text_start, text_end; /* the kernel's text, to find return addresses; 0: hits carry no stack */
	__s64 argument; /* of AGENT_DUPLICATE, how many copies; of AGENT_HOLD, bits a second, or 0; of AGENT_RETURN, the value */
	__u32 chance; /* of 2^32; 0: always */
	__u32 seed;
	__u32 verdict; /* enum agent_verdict, in verdict.c */
	__u32 reason; /* enum skb_drop_reason */
	__u32 captured_bytes; /* at most, in each event */
	__s32 held_returns, dropped_returns; /* return values */
	__s32 taken_from, taken_to; /* return values by which the function has taken its packet */
	__u8 skb_argument;
	__u8 device_arguments; /* bit n: argument n is a struct net_device * */
	__u8 socket_arguments; /* struct sock * */
	__u8 net_arguments; /* struct net * */
	__u16 filter_length; /* instructions; 0 and no conditions: every packet */
	__u16 conditions; /* behind the instructions: all of them hold */
	__u16 inside; /* 0, or 1 and the number of a rule: match only inside a call that it surrounds */
	__u8 surrounds; /* other rules match inside the calls that this one's filter takes; it has no verdict */
	__u8 transmits; /* the function is a driver's ndo_start_xmit() */
	__u8 at_once; /* of a hold in virtual time: the kernel stands still until the host has decided */
	__u8 in_order; /* of a hold: what the function gets meanwhile waits behind the held packet, and goes on after it */
	__u8 frees; /* of AGENT_RETURN: the packet is the function's, and is freed */
	__u8 padding[5];
};

struct agent_by_hand {
	__u64 address; /* of the function's first instruction; 0: hold nothing */
	__u64 packet; /* agent_hit.packet; 0: it could not be held and went on */
	__s32 held_returns;
	__s32 taken_from, taken_to; /* this and what follows: as in struct agent_arm */
	__u8 skb_argument;
	__u8 device_arguments;
	__u8 socket_arguments;
	__u8 net_arguments;
	__u8 transmits;
	__u8 padding[7];
};

struct agent_decide {
	struct agent_record record;
	__u64 cookie;
	__u64 packet; /* agent_hit.packet */
	__u64 after_ns;
	__s32 number; /* AGENT_COPY: up to AGENT_MOST_COPIES; RELEASE, DISCARD: AGENT_QUIET, nobody waits for its end event */
	__u32 data_bytes;
};

enum agent_write_flags {
	AGENT_WITHIN_MTU = 1, /* no later function fragments the packet: it must fit the device's MTU */
	AGENT_DISTRUST = 2, /* the receiver must verify the checksums: CHECKSUM_NONE */
};

struct agent_write {
	struct agent_record record;
	__u64 cookie;
	__u64 packet; /* agent_hit.packet */
	__s32 data_offset; /* of skb->data from the network header */
	__u32 data_bytes;
	__u16 checksum_start, checksum_offset; /* as in struct agent_hit */
	__u32 flags; /* enum agent_write_flags */
};

enum agent_event_kind {
	/*
	 * struct agent_hit; the packet from its network header on; and behind it, at the next multiple of 8 bytes, to
	 * the record's end: AGENT_STACK_WORD()s, from the innermost. The first is the probed function's return address.
	 */
	AGENT_HIT = 1,
	AGENT_DONE = 2, /* struct agent_done */
	AGENT_RELEASED = 3, /* struct agent_end */
	AGENT_DROPPED = 4, /* struct agent_end */
	AGENT_TASK = 5, /* struct agent_task */
};

struct agent_hit {
	struct agent_record record;
	__u64 at_ns;
	__u64 packet; /* its number while it is held; 0: it is not held */
	__u64 occurrence;
	__u64 skb, head;
	__u64 address;
	__u32 verdict;
	__u32 length; /* skb->len */
	__s32 data_offset; /* of skb->data from the network header */
	__u32 mark;
	__u32 device; /* index */
	/*
	 * Of a packet that is followed: its number (agent_step.packet), and the agent_step.call of its step here. Where the
	 * function is not traced: of the step around, or of the packet's last one. Else 0.
	 */
	__u32 followed, call;
	__u16 protocol; /* host order */
	__u16 captured_bytes;
	/*
	 * CHECKSUM_PARTIAL: where the bytes to be summed begin, from the network header, and the checksum field's offset from
	 * there. The field holds the pseudo header's sum. checksum_offset 0: not CHECKSUM_PARTIAL.
	 */
	__u16 checksum_start, checksum_offset;
	__u32 session; /* without a packet: the number of the current task's session */
};

struct agent_done {
	struct agent_record record;
	__u64 cookie;
	__s64 result; /* 0 (AGENT_MEASURE: ns), or minus an errno */
	char note[AGENT_NOTE_BYTES]; /* of a refused AGENT_WRITE: why, for people */
};

enum agent_cause { /* why a packet is held no more */
	AGENT_DECIDED = 0, /* by the host, its rule's end, or its delay */
	AGENT_LEASE = 1, /* the host did not decide in time */
	AGENT_DEVICE_GOES = 2, /* a device that it needs is deleted, or moves to another namespace */
	AGENT_NAMESPACE_GOES = 3,
};

struct agent_task {
	struct agent_record record;
	__s32 pid;
	__s32 call; /* the number of the system call that it is in, or -1 */
	char name[16];
	__u8 runs; /* it is the current one */
	__u8 is_kernels;
	__u8 padding[6];
};

struct agent_end {
	struct agent_record record;
	__u64 at_ns;
	__u64 packet; /* or AGENT_ALL */
	__u32 cause; /* enum agent_cause */
	__u32 padding;
};

enum agent_step_kind { /* in the ring of steps; record.rule: the probe's number */
	/*
	 * struct agent_step; if AGENT_MORE, struct agent_more; if AGENT_CHANGED, the packet's bytes from its network header
	 * on; of a function that takes a packet, the fields' values, together; to the record's end AGENT_STACK_WORD()s. Each
	 * begins at a multiple of 8 bytes.
	 */
	AGENT_STEP = 1,
	AGENT_RETURNED = 2, /* struct agent_return */
	AGENT_KIN = 3, /* struct agent_kin */
	AGENT_DEVICE = 4, /* struct agent_device: the name of that device index from now on */
};

enum agent_step_flags {
	AGENT_FREED = 1, /* the packet's bytes are freed here */
	AGENT_CHANGED = 2, /* the packet's bytes follow: they differ from the step before */
	AGENT_RESUMED = 4, /* it was held, and goes on here */
	AGENT_SHARED_HEAD = 8, /* there are clones of it */
	AGENT_MORE = 16,
	AGENT_LET_GO = 32, /* freed with a drop reason */
};

struct agent_step {
	struct agent_record record;
	__u64 at_ns;
	__u32 packet; /* the packet's number, from 1; 0: the function takes no packet */
	__u32 call; /* this call's number, from 1 */
	__u32 outer; /* the call that encloses it, or 0 */
	__u32 length; /* skb->len */
	__u64 skb;
	__u64 caller; /* the return address */
	__s16 data_offset; /* of skb->data from the network header */
	__u16 protocol; /* host order */
	__u16 device; /* index */
	__u8 captured_bytes;
	__u8 flags;
};

struct agent_more { /* each 0 where the packet has none */
	__u32 mark;
	__u32 hash;
	__u32 reason;
	__u32 padding;
};

struct agent_return {
	struct agent_record record;
	__u64 value;
	__u32 call;
	__u32 took; /* ns; from 2^31 on, without that bit, units of AGENT_LONG_NS */
};

struct agent_device {
	struct agent_record record;
	__u32 device; /* index */
	__u32 padding;
	char name[16];
};

struct agent_kin { /* a packet that is made from another or becomes a part of it, in the probed function */
	struct agent_record record;
	__u64 at_ns;
	__u64 skb;
	__u32 packet;
	__u32 other;
	__u32 call; /* that did it */
	__u32 role; /* AGENT_BORN: other is the packet that caused it; AGENT_COPIED, AGENT_MERGED */
};

#endif
