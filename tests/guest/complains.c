// SPDX-License-Identifier: GPL-2.0-only
/* Makes its kernel complain: echo WHAT >/sys/module/complains/parameters/make */
#include <linux/kthread.h>
#include <linux/list.h>
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rcupdate.h>
#include <linux/refcount.h>
#include <linux/slab.h>
#include <linux/spinlock.h>

static DEFINE_MUTEX(one);
static DEFINE_MUTEX(other);
static DEFINE_SPINLOCK(spin);
static volatile int many = 64;

static noinline void do_warn(void)
{
	WARN_ON(many);
}

static noinline void do_warn_text(void)
{
	WARN(many, "complains: %d are too many\n", many);
}

static noinline void do_refcount(void)
{
	refcount_t count = REFCOUNT_INIT(1);

	if (refcount_dec_and_test(&count))
		refcount_dec(&count);
}

static noinline void do_allocation(void)
{
	static unsigned long pages[1024];
	int count = 0;

	while (count < ARRAY_SIZE(pages) && (pages[count] = __get_free_pages(GFP_ATOMIC, 8)))
		count++;
	while (count)
		free_pages(pages[--count], 8);
}

static noinline void do_list(void)
{
	LIST_HEAD(head);
	struct list_head entry = { &head, &head };

	list_del(&entry);
}

static noinline void do_sleep(void)
{
	spin_lock(&spin);
	might_sleep();
	spin_unlock(&spin);
}

static noinline void do_rcu(void)
{
	rcu_read_lock();
	might_sleep();
	rcu_read_unlock();
}

static noinline void do_inversion(void)
{
	mutex_lock(&one);
	mutex_lock(&other);
	mutex_unlock(&other);
	mutex_unlock(&one);
	mutex_lock(&other);
	mutex_lock(&one);
	mutex_unlock(&one);
	mutex_unlock(&other);
}

static noinline void do_after_free(void)
{
	char *memory = kmalloc(64, GFP_KERNEL);

	kfree(memory);
	WRITE_ONCE(memory[8], 1);
}

static noinline void do_shift(void)
{
	many = 1 << many;
	many = 64;
}

static int hangs(void *unused)
{
	while (!kthread_should_stop()) {
		set_current_state(TASK_UNINTERRUPTIBLE);
		schedule();
	}
	return 0;
}

static noinline void do_hang(void)
{
	kthread_run(hangs, NULL, "hangs");
}

static noinline void do_bug(void)
{
	BUG_ON(many);
}

static const struct {
	const char *name;
	void (*call)(void);
} all[] = {
	{ "warn", do_warn }, { "warn_text", do_warn_text }, { "refcount", do_refcount }, { "allocation", do_allocation },
	{ "list", do_list }, { "sleep", do_sleep }, { "rcu", do_rcu }, { "inversion", do_inversion },
	{ "after_free", do_after_free }, { "shift", do_shift }, { "hang", do_hang }, { "bug", do_bug },
};

static int make(const char *value, const struct kernel_param *unused)
{
	int number;

	for (number = 0; number < ARRAY_SIZE(all); number++)
		if (sysfs_streq(value, all[number].name)) {
			all[number].call();
			return 0;
		}
	return -EINVAL;
}

static const struct kernel_param_ops ops = { .set = make };

module_param_cb(make, &ops, NULL, 0200);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Makes its kernel complain");
