// SPDX-License-Identifier: GPL-2.0-only
/*
 * The agent: verdicts on single packets at any function of this kernel, decided by skblab on the host.
 *
 * Commands come with an interrupt. A tasklet carries out decisions on held packets at once. Arming and disarming write the
 * kernel's text and need process context, so the tasklet leaves them to a work item and goes on after it.
 */
#include <asm/irq_regs.h>
#include <irq_kern.h>
#include <linux/init.h>
#include <linux/interrupt.h>
#include <linux/module.h>
#include <linux/workqueue.h>
#include <shared/timetravel.h>

#include "agent.h"
#include "packet.h"

static int memory_fd = -1, socket_fd = -1, requests_fd = -1, clock_fd = -1, irq = -1;
static bool host_is_gone, is_answering;
static u32 farewells; /* heard, and not carried out yet */

module_param(memory_fd, int, 0);
module_param(socket_fd, int, 0);
module_param(requests_fd, int, 0);
module_param(clock_fd, int, 0); /* of virtual time */

static void run_commands(struct tasklet_struct *tasklet);
static void run_slow_command(struct work_struct *work);
static DECLARE_TASKLET(commands_tasklet, run_commands);
static DECLARE_WORK(slow_command, run_slow_command);

static bool is_slow(const struct agent_record *record)
{
	switch (record->kind) {
	case AGENT_ARM:
	case AGENT_DISARM:
	case AGENT_FOLLOW:
	case AGENT_TRACE_PROBE:
	case AGENT_UNFOLLOW:
		return true;
	default:
		return false;
	}
}

static int carry_out(const struct agent_record *record)
{
	switch (record->kind) {
	case AGENT_ARM:
		return agent_arm((const struct agent_arm *)record);
	case AGENT_DISARM:
		return agent_disarm(record->rule);
	case AGENT_FOLLOW:
		return agent_follow((const struct agent_follow *)record);
	case AGENT_TRACE_PROBE:
		return agent_trace_probe((const struct agent_trace_probe *)record);
	default:
		agent_unfollow();
		return 0;
	}
}

static long answer(const struct agent_decide *decide)
{
	switch (decide->record.kind) {
	case AGENT_MEASURE:
		return agent_measure(decide);
	case AGENT_LOSSES:
		agent_count_losses();
		return 0;
	case AGENT_TASKS:
		agent_tell_tasks();
		return 0;
	default:
		return agent_decide(decide);
	}
}

static void run_command(struct agent_record *record)
{
	const struct agent_decide *decide = (const struct agent_decide *)record;
	const u64 cookie = decide->cookie;
	long result;

	is_answering = true;
	result = answer(decide);
	is_answering = false;
	agent_command_done(record);
	agent_answer(cookie, result);
}

static void run_commands(struct tasklet_struct *tasklet)
{
	struct agent_record *record;

	while (!host_is_gone && !farewells && (record = agent_command())) {
		if (is_slow(record)) {
			schedule_work(&slow_command);
			return;
		}
		run_command(record);
	}
	if (host_is_gone || farewells)
		schedule_work(&slow_command);
}

/*
 * Stand still, and carry out what the host commands, while *waits; in virtual time. A command that needs this kernel to run
 * ends that. Interrupts are off.
 */
void agent_stand_still(const u64 *waits)
{
	struct agent_record *record;
	bool has_said = false;

	if (clock_fd < 0 || is_answering)
		return;
	while (*waits && !host_is_gone && !farewells) {
		record = agent_command();
		if (record && is_slow(record))
			break;
		if (record) {
			run_command(record);
			has_said = false;
			continue;
		}
		if (!has_said)
			agent_say_of_time(AGENT_STANDS, 0);
		has_said = true;
		agent_await_doorbell();
		if (!agent_listen(&farewells))
			host_is_gone = true;
	}
	agent_say_of_time(AGENT_GOES_ON, 0);
	tasklet_schedule(&commands_tasklet);
}

/* The controller is gone: release and disarm everything. The next controller waits until this is done. */
static void let_everything_go(void)
{
	u32 heard = farewells;
	bool any = agent_disarm_all();

	if (any || host_is_gone)
		pr_info("skblab agent: the host is gone; everything is released\n");
	agent_commands_forget();
	agent_be_patient();
	local_irq_disable();
	farewells -= heard;
	agent_shared->farewells += heard;
	local_irq_enable();
	agent_ring();
}

static void run_slow_command(struct work_struct *work)
{
	struct agent_record *record;

	if (host_is_gone || farewells) {
		let_everything_go();
		return;
	}
	record = agent_command();
	if (record && is_slow(record)) {
		u64 cookie = ((const struct agent_decide *)record)->cookie; /* at the same place in every command */
		int result = carry_out(record);

		agent_command_done(record);
		agent_answer(cookie, result);
	}
	tasklet_schedule(&commands_tasklet);
}

/*
 * The work item must not run meanwhile: it may arm a function of the module. The tasklet, which schedules it, is disabled
 * first.
 */
static int module_changes(struct notifier_block *block, unsigned long state, void *module)
{
	if (state == MODULE_STATE_GOING && module != THIS_MODULE) {
		tasklet_disable(&commands_tasklet);
		flush_work(&slow_command);
		agent_disarm_module(module);
		tasklet_enable(&commands_tasklet);
	}
	return NOTIFY_OK;
}

/*
 * From 6.12 on, a guest in virtual time that rests runs the handlers of its input without the registers of what they interrupt
 * (arch/um/kernel/irq.c irq_do_pending_events()), and mconsole_interrupt() (arch/um/drivers/mconsole_kern.c) copies these from
 * wherever the pointer leads. Between two interrupts, it leads here then.
 */
static void have_registers(bool have)
{
	static struct pt_regs none;

	if (time_travel_mode != TT_MODE_OFF)
		set_irq_regs(have ? &none : NULL);
}

static struct notifier_block module_notifier = { .notifier_call = module_changes };

static irqreturn_t doorbell_rang(int number, void *data)
{
	if (!agent_listen(&farewells))
		host_is_gone = true;
	tasklet_schedule(&commands_tasklet);
	return IRQ_HANDLED;
}

static int __init agent_init(void)
{
	int error = agent_channel_open(memory_fd, socket_fd, clock_fd);

	if (error)
		return error;
	error = agent_branch_open(clock_fd);
	if (error) {
		agent_channel_close();
		return error;
	}
	error = agent_held_open();
	if (error) {
		agent_branch_close();
		agent_channel_close();
		return error;
	}
	irq = um_request_irq(UM_IRQ_ALLOC, socket_fd, IRQ_READ, doorbell_rang, 0, "skblab", &commands_tasklet);
	if (irq < 0) {
		agent_held_close();
		agent_branch_close();
		agent_channel_close();
		return irq;
	}
	error = agent_devices_begin();
	if (error)
		pr_err("skblab agent: it knows no devices: error %d\n", error);
	error = agent_hostfiles_open(requests_fd);
	if (error) /* rules and traces work without; commands in the guest do not */
		pr_err("skblab agent: it opens no files of the host's: error %d\n", error);
	register_module_notifier(&module_notifier);
	have_registers(true);
	agent_channel_ready();
	tasklet_schedule(&commands_tasklet); /* commands may have come before the interrupt was requested */
	return 0;
}

static void __exit agent_exit(void)
{
	have_registers(false);
	unregister_module_notifier(&module_notifier);
	um_free_irq(irq, &commands_tasklet);
	host_is_gone = true;
	tasklet_kill(&commands_tasklet);
	flush_work(&slow_command); /* schedules the tasklet, which may schedule the work once more */
	tasklet_kill(&commands_tasklet);
	cancel_work_sync(&slow_command);
	agent_disarm_all();
	agent_held_close();
	agent_devices_end();
	agent_branch_close();
	agent_hostfiles_close();
	agent_channel_close();
}

module_init(agent_init);
module_exit(agent_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Verdicts on single packets at any function of this kernel");
