"""A guest whose time is ours (``time-travel=ext:``; who grants it is src/skblab/clock.py).

**The controller.** Linux asks its controller before any time passes, each step of a program that reads the clock
included, and cannot be woken before the moment that it has asked for: input from the host waits for the next timer. Now
it asks before *idle* time passes, and once a second while it is busy; WAIT says when it is, and whether it is idle (bit
63); RUN may name an earlier moment, at which the guest looks at its input. The socket may be one that the process has
inherited, by its number.

**No descriptors.** From 6.11 on, the answer to START may carry descriptors. Where it carries none, the kernel closed
those whose numbers stood on its stack (time_travel_handle_message()).

**Lost input.** A SIGIO that came while the guest waited took the events from the epoll descriptor, which reports each
once, and only noted that some had come (irq.c sigio_reg_handler()). Now it leaves them there; 6.12 notes them.

**Randomness.** All of the guest's comes from os_getrandom(). With ``random_seed=N``, N determines it.

**System calls take time.** A program that waits for a coarse clock, as times(2) is, by calling again and again waited
for ever: nothing but the clock that is read precisely took time (arch/um/kernel/time.c timer_read()). Now each system
call does, as much as that.

**A program that spins** without any call stopped the time for ever. Now a SIGALRM of the host's, which has no other use
in virtual time, lets a second pass.
"""

from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault, Sign

TIME = Path("arch/um/kernel/time.c")
UTIL = Path("arch/um/os-Linux/util.c")
SYSCALL = Path("arch/um/kernel/skas/syscall.c")
PROCESS = Path("arch/um/kernel/process.c")
IRQ = Path("arch/um/kernel/irq.c")

EXT_FD = "static int time_travel_ext_fd = -1;\n"
ASKS = """\
static bool time_travel_ext_asks; /* whether the controller is asked before time passes */
static unsigned long long time_travel_ext_ran; /* when it let this kernel run last */
"""
REQUEST = """\
static void time_travel_ext_update_request(unsigned long long time)
{
	if (time_travel_mode != TT_MODE_EXTERNAL)
"""
REQUEST_IF_IT_ASKS = """\
static void time_travel_ext_update_request(unsigned long long time)
{
	if (time_travel_mode != TT_MODE_EXTERNAL || !time_travel_ext_asks)
"""
RUN = "\tcase UM_TIMETRAVEL_RUN:\n\t\ttime_travel_set_time(msg->time);\n"
WAIT = "\ttime_travel_ext_req(UM_TIMETRAVEL_WAIT, -1);\n"
SAY_WHEN = "\ttime_travel_ext_req(UM_TIMETRAVEL_WAIT, time_travel_time | (u64)idle << 63);\n"
UPDATE = """\
	if (time_travel_mode == TT_MODE_EXTERNAL && time_travel_ext_request(ns))
		time_travel_ext_wait(idle);
	else
		time_travel_set_time(ns);
"""
UPDATE_IF_IDLE = """\
	time_travel_ext_asks = time_travel_mode == TT_MODE_EXTERNAL &&
		(idle || ns - time_travel_ext_ran >= NSEC_PER_SEC);
	if (time_travel_ext_asks && time_travel_ext_request(ns))
		time_travel_ext_wait(idle);
	else
		time_travel_set_time(ns);
	time_travel_ext_asks = false;
"""
UPDATED = "\t\t__time_travel_update_time(e->time, idle);\n"
WOKEN = """\
		if (time_travel_time < e->time) { /* the controller has something for this kernel */
			if (idle)
				break;
			continue;
		}
"""
CONNECT = """\
	const char *sep;
	unsigned long long id = (unsigned long long)-1;
	int rc;

"""
TAKE = """\
	if (!kstrtoint(socket, 10, &rc)) { /* a descriptor that this process has inherited */
		time_travel_ext_fd = rc;
		time_travel_ext_req(UM_TIMETRAVEL_START, id);
		return 1;
	}

"""
DESCRIPTORS = "int fd[UM_TIMETRAVEL_SHARED_MAX_FDS];"

HANDLER_USED = "\tif (timetravel_handlers_only && !um_irq_timetravel_handler_used())\n\t\treturn;\n"
LEFT_THERE = """\
#ifdef CONFIG_UML_TIME_TRAVEL_SUPPORT
	if (timetravel_handlers_only && time_travel_mode == TT_MODE_EXTERNAL) {
		mark_sigio_pending();
		return;
	}
#endif

"""

GETRANDOM = """\
ssize_t os_getrandom(void *buf, size_t len, unsigned int flags)
{
	return getrandom(buf, len, flags);
}
"""
SEEDED = """\
static unsigned long long random_state;
static int random_is_seeded;

static int __init random_seed_param(char *line, int *add)
{
	random_state = strtoull(line, NULL, 10);
	random_is_seeded = 1;
	*add = 0;
	return 0;
}

__uml_setup("random_seed=", random_seed_param,
"random_seed=<number>\\n"
"    This number determines all of the kernel's randomness.\\n\\n"
);

/* splitmix64: Steele, Lea and Flood, Fast splittable pseudorandom number generators, OOPSLA 2014 */
static unsigned char next_random(void)
{
	unsigned long long z = random_state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return (z ^ (z >> 31)) >> 56;
}

ssize_t os_getrandom(void *buf, size_t len, unsigned int flags)
{
	unsigned char *to = buf;
	size_t i;

	if (!random_is_seeded)
		return getrandom(buf, len, flags);
	for (i = 0; i < len; i++)
		to[i] = next_random();
	return len;
}
"""
CALL = "\t/* Initialize the syscall number and default return value. */\n"
CALL_TAKES_TIME = f"""\
	if (time_travel_mode == TT_MODE_EXTERNAL)
		um_ndelay(TIMER_MULTIPLIER);

{CALL}"""

TIMER_HANDLER = """\
void timer_handler(int sig, struct siginfo *unused_si, struct uml_pt_regs *regs)
{
	unsigned long flags;

"""
TIMER_HANDLER_OF_THE_HOST = """\
#ifdef CONFIG_UML_TIME_TRAVEL_SUPPORT
bool time_travel_spins; /* process.c interrupt_end() lets time pass */

/* Whether an alarm is the host's: deliver_alarm()'s has no registers. */
static bool time_travel_host_alarm(struct uml_pt_regs *regs)
{{
	if (time_travel_mode != TT_MODE_EXTERNAL || !UPT_IP(regs))
		return false;
	time_travel_spins = true;
	if (get_current()->mm)
		os_alarm_process(get_current()->mm->context.id.{pid});
	return true;
}}
#else
static inline bool time_travel_host_alarm(struct uml_pt_regs *regs)
{{
	return false;
}}
#endif

void timer_handler(int sig, struct siginfo *unused_si, struct uml_pt_regs *regs)
{{
	unsigned long flags;

	if (time_travel_host_alarm(regs))
		return;

"""
INTERRUPT_END = """\
void interrupt_end(void)
{
	struct pt_regs *regs = &current->thread.regs;
	unsigned long thread_flags;

"""
A_SECOND_PASSES = """\
#ifdef CONFIG_UML_TIME_TRAVEL_SUPPORT
	extern bool time_travel_spins;

	if (time_travel_spins) {
		time_travel_spins = false;
		time_travel_ndelay(NSEC_PER_SEC);
	}
#endif
"""

CONTROLLER = Fault(
    name="the controller of virtual time",
    does="in virtual time, the guest looks at its input only when a timer of its own ends, and asks at every step",
    corrections=(
        Correction(
            (
                Change(TIME, EXT_FD, f"{EXT_FD}{ASKS}"),
                Change(TIME, REQUEST, REQUEST_IF_IT_ASKS),
                Change(TIME, RUN, f"{RUN}\t\ttime_travel_ext_ran = msg->time;\n"),
                Change(TIME, WAIT, SAY_WHEN),
                Change(TIME, UPDATE, UPDATE_IF_IDLE),
                Change(TIME, UPDATED, f"{UPDATED}{WOKEN}"),
                Change(TIME, CONNECT, f"{CONNECT}{TAKE}"),
            )
        ),
    ),
)
NO_DESCRIPTORS = Fault(
    name="descriptors that were not sent",
    does="in virtual time, the guest's kernel may close any of its descriptors when it starts",
    corrections=(Correction((Change(TIME, DESCRIPTORS, DESCRIPTORS.replace(";", " = { -1, -1 };")),)),),
    absent=(Sign("its START takes no descriptors", TIME, has=("UM_TIMETRAVEL_START",), lacks=("os_rcv_fd_msg",)),),
)
LOST_INPUT = Fault(
    name="input that is lost",
    does="in virtual time, the guest does not see what comes while it waits",
    corrections=(Correction((Change(IRQ, HANDLER_USED, f"{LEFT_THERE}{HANDLER_USED}"),), until=(6, 12)),),
    absent=(Sign("a SIGIO notes which events it took", IRQ, has=("irq_do_pending_events(",)),),
)
RANDOMNESS = Fault(
    name="randomness without a seed",
    does="no run of a guest in virtual time is like another",
    corrections=(Correction((Change(UTIL, GETRANDOM, SEEDED),)),),
)
FREE_CALLS = Fault(
    name="system calls that take no time",
    does="in virtual time, a program that waits for times(2) to change runs for ever",
    corrections=(Correction((Change(SYSCALL, CALL, CALL_TAKES_TIME),)),),
)
SPINNING = Fault(
    name="a program that spins",
    does="in virtual time, a program that computes for ever keeps all others from getting on",
    corrections=tuple(
        Correction(
            (
                Change(TIME, f"context.id.{pid})", f"context.id.{pid})"),
                Change(TIME, TIMER_HANDLER, TIMER_HANDLER_OF_THE_HOST.format(pid=pid)),
                Change(PROCESS, INTERRUPT_END, f"{INTERRUPT_END}{A_SECOND_PASSES}"),
            )
        )
        for pid in ("pid", "u.pid")
    ),
)
VIRTUAL_TIME_FAULTS = (CONTROLLER, NO_DESCRIPTORS, LOST_INPUT, RANDOMNESS, FREE_CALLS, SPINNING)
