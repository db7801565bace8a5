// SPDX-License-Identifier: GPL-2.0-only
/* The guest's tasks, for an error that names those that keep it from going on. */
#include <linux/rcupdate.h>
#include <linux/sched.h>
#include <linux/sched/signal.h>

#include "agent.h"

static void tell_task(const struct task_struct *task)
{
	struct agent_task *event = agent_event_begin(AGENT_TASK, 0, sizeof(*event));

	if (!event)
		return;
	event->pid = task->pid;
	event->call = UPT_SYSCALL_NR(&task->thread.regs.regs);
	event->runs = task == current;
	event->is_kernels = !task->mm;
	memset(event->padding, 0, sizeof(event->padding));
	memcpy(event->name, task->comm, sizeof(event->name));
	agent_event_end(event);
}

/* An event for each task of a program, but for init, and for the one that runs. */
void agent_tell_tasks(void)
{
	const struct task_struct *process, *task;
	unsigned long flags;

	local_irq_save(flags);
	rcu_read_lock();
	for_each_process_thread(process, task)
		if (task->mm ? !is_global_init((struct task_struct *)task) : task == current)
			tell_task(task);
	rcu_read_unlock();
	local_irq_restore(flags);
}
