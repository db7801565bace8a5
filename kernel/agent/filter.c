// SPDX-License-Identifier: GPL-2.0-only
/* Which packets: a program on their bytes, and conditions on members of their struct sk_buff. */
#include <linux/slab.h>

#include "packet.h"

#define FIELD_BYTES 64 /* of a condition's field, at most */

/* By the IP version: a packet on its way out has no skb->protocol before ip_output() sets it (net/ipv4/ip_output.c). */
static __be16 protocol_by_version(const struct sk_buff *skb)
{
	switch (skb_headlen(skb) ? *skb->data >> 4 : 0) {
	case 4:
		return htons(ETH_P_IP);
	case 6:
		return htons(ETH_P_IPV6);
	default:
		return 0;
	}
}

/* Run a program on the packet from its network header on, wherever skb->data stands here. */
static bool takes_bytes(const struct bpf_prog *program, struct sk_buff *skb)
{
	const __be16 protocol = skb->protocol;
	int offset = agent_network_offset(skb);
	bool taken;

	skb->data += offset;
	skb->len -= offset;
	if (unlikely(!protocol))
		skb->protocol = protocol_by_version(skb);
	taken = bpf_prog_run(program, skb);
	skb->protocol = protocol;
	skb->data -= offset;
	skb->len += offset;
	return taken;
}

static bool holds_for_text(const struct agent_condition *condition, const char *text)
{
	const bool same = !strncmp(text, condition->text, condition->field.bytes);

	return condition->operation == AGENT_EQUAL ? same : !same;
}

/* The number in a field's bytes: of so many bits behind shift, or of all its bytes. */
static u64 number_in(const struct agent_condition *condition, const u8 *bytes)
{
	const unsigned int size = condition->field.bytes;
	unsigned int bits = condition->bits ?: size * BITS_PER_BYTE;
	u64 number = 0;

	for (unsigned int i = 0; i < size; i++)
		number |= (u64)bytes[condition->flags & AGENT_BIG_ENDIAN ? size - 1 - i : i] << (i * BITS_PER_BYTE);
	number >>= condition->shift;
	if (bits < 64)
		number &= (1ull << bits) - 1;
	return condition->flags & AGENT_SIGNED ? (u64)sign_extend64(number, bits - 1) : number;
}

static bool holds_for_number(const struct agent_condition *condition, u64 number)
{
	const u64 value = condition->value;
	const bool is_less = condition->flags & AGENT_SIGNED ? (s64)number < (s64)value : number < value;

	switch (condition->operation) {
	case AGENT_EQUAL:
		return number == value;
	case AGENT_UNEQUAL:
		return number != value;
	case AGENT_LESS:
		return is_less;
	case AGENT_AT_MOST:
		return is_less || number == value;
	case AGENT_GREATER:
		return !is_less && number != value;
	case AGENT_AT_LEAST:
		return !is_less;
	default: /* AGENT_ANY_BIT */
		return number & value;
	}
}

/* A member that cannot be reached, because a pointer before it is NULL, fulfils no condition. */
static bool holds(const struct agent_condition *condition, const struct sk_buff *skb)
{
	u8 bytes[FIELD_BYTES];

	if (!agent_field_copy(skb, &condition->field, bytes))
		return false;
	if (condition->flags & AGENT_TEXT)
		return holds_for_text(condition, (const char *)bytes);
	return holds_for_number(condition, number_in(condition, bytes));
}

bool agent_takes(const struct agent_filter *filter, struct sk_buff *skb)
{
	if (filter->program && !takes_bytes(filter->program, skb))
		return false;
	for (unsigned int i = 0; i < filter->conditions; i++)
		if (!holds(&filter->condition[i], skb))
			return false;
	return true;
}

static bool is_sound(const struct agent_condition *condition)
{
	const struct agent_field *field = &condition->field;
	const unsigned int most = condition->flags & AGENT_TEXT ? FIELD_BYTES : sizeof(u64);

	return field->hops && field->hops <= AGENT_FIELD_HOPS && field->bytes && field->bytes <= most &&
	       condition->shift + condition->bits <= field->bytes * BITS_PER_BYTE &&
	       condition->operation <= (condition->flags & AGENT_TEXT ? AGENT_UNEQUAL : AGENT_ANY_BIT);
}

/*
 * Make the filter of a command that ends, at end, in so many instructions and conditions; NULL for every packet. Process
 * context.
 */
int agent_filter_create(struct agent_filter **made, const void *instructions, u16 length, u16 conditions, const void *end)
{
	struct sock_fprog_kern program = { .len = length, .filter = (struct sock_filter *)instructions };
	const u32 program_bytes = length * sizeof(struct sock_filter);
	struct agent_filter *filter;
	int error = 0;

	*made = NULL;
	if (length > BPF_MAXINSNS || conditions > AGENT_CONDITIONS ||
	    instructions + program_bytes + conditions * sizeof(struct agent_condition) > end)
		return -EINVAL;
	if (!length && !conditions)
		return 0;
	filter = kzalloc(struct_size(filter, condition, conditions), GFP_KERNEL);
	if (!filter)
		return -ENOMEM;
	filter->conditions = conditions;
	memcpy(filter->condition, instructions + program_bytes, conditions * sizeof(struct agent_condition));
	for (u16 i = 0; i < conditions && !error; i++) {
		struct agent_condition *condition = &filter->condition[i];

		condition->text[sizeof(condition->text) - 1] = '\0';
		error = is_sound(condition) ? 0 : -EINVAL;
	}
	if (length && !error)
		error = bpf_prog_create(&filter->program, &program);
	if (error) {
		agent_filter_free(filter);
		return error;
	}
	*made = filter;
	return 0;
}

void agent_filter_free(struct agent_filter *filter)
{
	if (filter && filter->program)
		bpf_prog_destroy(filter->program);
	kfree(filter);
}
