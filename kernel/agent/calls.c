// SPDX-License-Identifier: GPL-2.0-only
/*
 * Which calls are under way, stack by stack. A call whose return is of interest returns to agent_return (trampoline.S) and
 * from there to its caller: the return address itself is kept here, with what is to be known when the call ends. So it is
 * known, too, in which call another one happens.
 *
 * A call can be left without a return, when its task dies; the next one that comes so high up on this stack, or finds
 * something else where the return address was, clears it away. Interrupts are off in most of this.
 */
#include <linux/mm.h>
#include <linux/slab.h>
#include <linux/thread_info.h>

#include "agent.h"

#define MOST_STACKS 128
#define DEEPEST 64

struct stack {
	unsigned long base;
	unsigned int depth;
	struct agent_call calls[DEEPEST]; /* from the outermost */
};

static struct stack *stacks;
static unsigned int used;
static u32 last_number;

static struct stack *recent;

static noinline struct stack *find_stack(unsigned long base)
{
	struct stack *empty = NULL;

	if (!stacks)
		return NULL;
	for (struct stack *stack = stacks; stack < stacks + used; stack++) {
		if (stack->base == base)
			return recent = stack;
		if (!stack->depth)
			empty = stack;
	}
	if (used < MOST_STACKS)
		empty = &stacks[used++];
	if (!empty)
		return NULL;
	empty->base = base;
	empty->depth = 0;
	return recent = empty;
}

static __always_inline struct stack *stack_of(unsigned long at)
{
	const unsigned long base = at & ~(THREAD_SIZE - 1);

	return likely(recent && recent->base == base) ? recent : find_stack(base);
}

static __always_inline bool is_under_way(const struct agent_call *call, unsigned long at)
{
	return call->slot >= at &&
	       READ_ONCE_NOCHECK(*(const unsigned long *)call->slot) == (unsigned long)agent_return;
}

/* The innermost call that is under way where the stack has come to, or NULL; a jump instead of a call shares its place. */
static __always_inline struct agent_call *innermost(struct stack *stack, unsigned long at)
{
	while (stack->depth && !is_under_way(&stack->calls[stack->depth - 1], at))
		stack->depth--;
	return stack->depth ? &stack->calls[stack->depth - 1] : NULL;
}

u32 agent_call_number(void)
{
	return ++last_number ?: ++last_number;
}

/* The call in which another one happens that returns to *slot: its number and its packet's; of none, 0. */
void agent_call_around(const unsigned long *slot, u32 *number, u32 *packet)
{
	struct stack *stack = stack_of((unsigned long)slot);
	const struct agent_call *call = stack ? innermost(stack, (unsigned long)slot) : NULL;

	*number = call ? call->number : 0;
	*packet = call ? call->packet : 0;
}

/*
 * Have a call told of when it returns; NULL where that cannot be, which is counted. *slot: its return address, where
 * agent_call_around() has looked. All but these three fields is the caller's to fill in.
 */
struct agent_call *agent_call_begin(unsigned long *slot)
{
	struct stack *stack = stack_of((unsigned long)slot);
	struct agent_call *call;

	if (!stack || stack->depth == DEEPEST) {
		agent_shared->unhooked += stacks != NULL;
		return NULL;
	}
	call = &stack->calls[stack->depth++];
	call->slot = (unsigned long)slot;
	call->caller = *slot;
	call->number = agent_call_number();
	*slot = (unsigned long)agent_return;
	return call;
}

/* A call has come to its end; what it was stays until the next one on its stack begins. */
const struct agent_call *agent_call_end(const unsigned long *slot)
{
	struct stack *stack = stack_of((unsigned long)slot);
	struct agent_call *call = stack ? innermost(stack, (unsigned long)slot) : NULL;

	BUG_ON(!call || call->slot != (unsigned long)slot); /* there is no way back */
	stack->depth--;
	return call;
}

/* What a return address on this stack was before it was ours; whatever else lies there is left as it is. */
unsigned long agent_call_caller(unsigned long slot)
{
	const unsigned long word = READ_ONCE_NOCHECK(*(const unsigned long *)slot);
	struct stack *stack = word == (unsigned long)agent_return ? stack_of(slot) : NULL;

	for (unsigned int i = stack ? stack->depth : 0; i--;)
		if (stack->calls[i].slot == slot)
			return stack->calls[i].caller;
	return word;
}

int agent_calls_begin(void)
{
	if (!stacks)
		stacks = kvcalloc(MOST_STACKS, sizeof(*stacks), GFP_KERNEL);
	return stacks ? 0 : -ENOMEM;
}

/* Every call returns to its caller again, and is not told of. Not for interrupts, which may be on here. */
void agent_calls_end(void)
{
	struct stack *old = stacks;
	unsigned long flags;

	local_irq_save(flags);
	for (struct stack *stack = stacks; stack && stack < stacks + used; stack++)
		while (stack->depth--) {
			struct agent_call *call = &stack->calls[stack->depth];

			if (is_under_way(call, 0))
				*(unsigned long *)call->slot = call->caller;
		}
	stacks = recent = NULL;
	used = 0;
	local_irq_restore(flags);
	kvfree(old);
}
