"""Lost wake-ups.

os_idle_sleep() sleeps until the next signal, even if one has just come: a SIGIO between the disabling of interrupts and
the sleep is only marked pending. And a tap sends SIGIO before it is readable (drivers/net/tun.c tun_net_xmit()): a
quick guest finds nothing to read, and no other SIGIO comes. Either packet waits for the next event, a second or more:
one in 3,000 did. So SIGIO is blocked, too, before the check for pending work; and after a SIGIO with nothing to read,
the sleep ends when there is something.
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault

SIGNAL = Path("arch/um/os-Linux/signal.c")
IRQ = Path("arch/um/os-Linux/irq.c")
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
    ),
)  # fmt: skip
