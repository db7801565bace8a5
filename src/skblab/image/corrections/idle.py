"""Lost wake-ups.

os_idle_sleep() sleeps until the next signal, even if one has just come: a SIGIO between the disabling of interrupts and
the sleep is only marked pending. And a tap sends SIGIO before it is readable (drivers/net/tun.c tun_net_xmit()): a
quick guest finds nothing to read, and no other SIGIO comes. Either packet waits for the next event, a second or more:
one in 3,000 did. So SIGIO is blocked, too, before the check for pending work; and after a SIGIO with nothing to read,
the sleep ends when there is something. Two calls of epoll_wait() in a row that find nothing show it: each handler ends
with one.

Newer kernels (7.3) sleep in poll() with a signalfd, because of SMP, and block SIGALRM alone before their check. They
have the same two gaps: a SIGIO before poll() is only marked pending, and a SIGIO with nothing to read is forgotten. So
SIGIO and SIGCHLD are blocked, too, every pending signal counts, and poll() watches epoll's descriptor after a SIGIO
with nothing to read. docs/upstream/um-idle-lost-wakeups.patch is the same as a patch.
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault

SIGNAL = Path("arch/um/os-Linux/signal.c")
IRQ = Path("arch/um/os-Linux/irq.c")
INTERNAL = Path("arch/um/os-Linux/internal.h")
TIME = Path("arch/um/os-Linux/time.c")

SLEEP_UNTIL_A_SIGNAL = """\
	sigprocmask(SIG_BLOCK, &set, &old);

	/* check the timer, and if it'll fire then wait for it */
	timer_gettime(event_high_res_timer, &its);
	if (its.it_value.tv_sec || its.it_value.tv_nsec)
		sigsuspend(&old);
"""
SLEEP_UNTIL_THERE_IS_SOMETHING = """\
	sigaddset(&set, SIGIO);
	sigprocmask(SIG_BLOCK, &set, &old);

	timer_gettime(event_high_res_timer, &its);
	if (its.it_value.tv_sec || its.it_value.tv_nsec) {
		extern unsigned int signals_pending, epoll_found_nothing;
		extern int epollfd;
		fd_set ready;

		FD_ZERO(&ready);
		FD_SET(epollfd, &ready);
		if (!signals_pending && epoll_found_nothing < 2) /* it is asked until it finds nothing */
			sigsuspend(&old);
		else if (!signals_pending && pselect(epollfd + 1, &ready, NULL, NULL, NULL, &old) > 0)
			signals_pending |= 1; /* SIGIO_MASK */
	}
"""
ASKED = "\treturn n;\n}\n"

# 7.3
ALARM_PENDING = """\
int timer_alarm_pending(void)
{
	return !!(signals_pending & SIGALRM_MASK);
}
"""
ANY_PENDING = """\
int irq_signals_pending(void)
{
	return !!signals_pending;
}

void note_sigio(void)
{
	signals_pending |= SIGIO_MASK;
}
"""
ASKED_OF_7 = """\
	found_nothing = n ? 0 : found_nothing + 1;
	return n;
}

/*
 * Return the epoll descriptor if an idle CPU has to watch it, else -1.
 *
 * A tap sends SIGIO before it wakes its wait queue: the handler may find
 * nothing, and no other SIGIO comes. Each run of the handler ends with a call
 * that finds nothing; two in a row are a SIGIO with nothing to read.
 */
int os_early_sigio_fd(void)
{
	return found_nothing > 1 ? epollfd : -1;
}
"""
WAKES = """\
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, IPI_SIGNAL);
"""
WAKES_FOR_ALL = """\
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, IPI_SIGNAL);
	if (uml_curr_cpu() == 0) /* the others have it blocked always */
		sigaddset(&set, SIGIO);
"""
SLEEP_IN_POLL = """\
	sigset_t set;

	/*
	 * Block SIGALRM while performing the need_resched check.
	 * Note that, because IRQs are disabled, the IPI signal is
	 * already blocked.
	 */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigprocmask(SIG_BLOCK, &set, NULL);

	/*
	 * Because disabling IRQs does not block SIGALRM, it is also
	 * necessary to check for any pending timer alarms.
	 */
	if (!uml_need_resched() && !timer_alarm_pending())
		os_poll(1, &wake_signals);

	/* Restore the signal mask. */
	sigprocmask(SIG_UNBLOCK, &set, NULL);
"""
SLEEP_IN_POLL_UNTIL_THERE_IS_SOMETHING = """\
	sigset_t set, old;
	int fds[2];

	/*
	 * Block the signals that interrupt while performing the checks;
	 * the signalfd wakes us for them. Note that, because IRQs are
	 * disabled, the IPI signal is already blocked.
	 */
	sigemptyset(&set);
	sigaddset(&set, SIGALRM);
	sigaddset(&set, SIGCHLD);
	sigaddset(&set, SIGIO);
	sigprocmask(SIG_BLOCK, &set, &old);

	/*
	 * Because disabling IRQs does not block these signals, it is also
	 * necessary to check whether one was noted since.
	 */
	fds[0] = wake_signals;
	fds[1] = uml_curr_cpu() == 0 ? os_early_sigio_fd() : -1;
	if (!uml_need_resched() && !irq_signals_pending() &&
	    os_poll(2, fds) == 1)
		note_sigio();

	/* Restore the signal mask. */
	sigprocmask(SIG_SETMASK, &old, NULL);
"""

LOST_WAKE_UPS = Fault(
    name="lost wake-ups",
    does="a packet that comes to an idle guest may wait for a second or more",
    corrections=(
        Correction((
            Change(SIGNAL, "static unsigned int signals_pending;", "unsigned int signals_pending;"),
            Change(IRQ, "static int epollfd = -1;", "int epollfd = -1;\nunsigned int epoll_found_nothing;"),
            Change(IRQ, ASKED, f"\tepoll_found_nothing = n ? 0 : epoll_found_nothing + 1;\n{ASKED}"),
            Change(TIME, SLEEP_UNTIL_A_SIGNAL, SLEEP_UNTIL_THERE_IS_SOMETHING),
        )),
        Correction(
            (
                Change(SIGNAL, ALARM_PENDING, ANY_PENDING),
                Change(
                    INTERNAL,
                    "int timer_alarm_pending(void);\n",
                    "int irq_signals_pending(void);\nvoid note_sigio(void);\n\n"
                    "/*\n * irq.c\n */\nint os_early_sigio_fd(void);\n",
                ),
                Change(IRQ, "#include <um_malloc.h>\n", '#include <um_malloc.h>\n#include "internal.h"\n'),
                Change(IRQ, "int epollfd = -1;\n", "int epollfd = -1;\nstatic unsigned int found_nothing;\n"),
                Change(IRQ, ASKED, ASKED_OF_7),
                Change(TIME, WAKES, WAKES_FOR_ALL),
                Change(TIME, SLEEP_IN_POLL, SLEEP_IN_POLL_UNTIL_THERE_IS_SOMETHING),
            ),
            since=(6, 13),
        ),
    ),
)  # fmt: skip
