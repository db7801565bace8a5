"""Correct faults of User Mode Linux without touching the source, which may be a developer's tree.

A corrected copy of the file is put into the build directory, which make searches before the source (VPATH). A source
without the fault is built unchanged.

**Room for registers.** UML keeps a guest process's floating-point state in buffers of ``HOST_FP_SIZE``: 2,696 bytes,
the size of AVX-512, at least up to 6.12. PTRACE_SETREGSET refuses a state that is cut short
(arch/x86/kernel/fpu/regset.c xstateregs_set()), so that on a processor with AMX, whose state is 11,008 bytes, the
guest's first process dies of its first page fault. A buffer larger than the processor's state does no harm. The buffers
lie on the kernel's stacks, which grow with them (KERNEL_STACK_ORDER in kconfig/base.config).

**Locks of the vector device.** vector_reset_stats() takes, with softirqs enabled, a lock that vector_poll() takes in a
softirq. On one CPU this is harmless, but lockdep reports it and then turns itself off.

**Lost wake-ups.** os_idle_sleep() sleeps until the next signal, even if one has just come: a SIGIO between the
disabling of interrupts and the sleep is only marked pending. And a tap sends SIGIO before it is readable
(drivers/net/tun.c tun_net_xmit()): a quick guest finds nothing to read, and no other SIGIO comes. Either packet waits
for the next event, a second or more: one in 3,000 did. So SIGIO is blocked, too, before the check for pending work; and
after a SIGIO with nothing to read, the sleep ends when there is something.

**A frame that the link refuses.** The vector device treats every send error except a full queue as the end of the link:
from then on it silently refuses every packet (drivers/vector_kern.c vp->in_error). One frame longer than the MTU of a
veth was enough. Now a refused frame is dropped and counted (tx_dropped), as on a network card. ENOBUFS is not a full
queue: the host's veth has dropped the frame, and counts it (drivers/net/veth.c veth_xmit()). A receive error, as when
the host's device goes down, does not end the link either.

**Jumbo frames.** The size of the vector device's buffers comes from the command line, and its MTU is limited to 1,500
(net/ethernet/eth.c ether_setup()). A receive buffer now has the size of the current MTU; what exceeds the usual size
lies in pages, so that small frames cost no more and fragmented memory suffices. A queue of buffers of another MTU is
freed.

**A truncated frame.** A frame longer than its buffer was silently delivered without its end. Now a frame that fills
its buffer is dropped and counted (rx_errors, rx_length_errors), as on a network card. A frame for which there was no
memory is counted in rx_errors; on a tap, reading it into an unallocated buffer (drop_buffer) was the end of the link.

**A link's descriptor.** The device closes its descriptor when it goes down, and uses the same *number* when it comes
up, which may be another file by then (drivers/vector_user.c user_init_fd_fds()). Now it opens a duplicate.

**The length of missing queues.** A tap's device has no queues, nor has a device that is down, and asking for their
length (``ethtool -g``) made the kernel panic. Now the answer is the length on the command line.

**A fork that is killed.** dup_mmap() leaves XA_ZERO_ENTRY in the child's maple tree where a fatal signal stopped it,
and behind it the parent's own mappings. Every walk of the tree stops there (mm/mmap.c exit_mmap()), but UML's
flush_tlb_mm() took the entry for a mapping: the kernel panicked. Now it stops there, too. 6.1 leaves no such entry.

**The current task.** UML's main() calls kernel functions before a current task exists, and KCOV makes them read it
(kernel/kcov.c check_kcov_mode()): a kernel with KCOV died before its first message. Without a task nobody can have
asked for coverage.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

VECTOR = Path("arch/um/drivers/vector_kern.c")
TLB = Path("arch/um/kernel/tlb.c")
VECTOR_USER = Path("arch/um/drivers/vector_user.c")
HOST = Path("arch/um/os-Linux")

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
MARK_ALL = """\
	for_each_vma(vmi, vma)
		um_tlb_mark_sync(mm, vma->vm_start, vma->vm_end);
"""
MARK_ALL_THAT_ARE = """\
	for_each_vma(vmi, vma) {
		if (xa_is_zero(vma))
			break;
		um_tlb_mark_sync(mm, vma->vm_start, vma->vm_end);
	}
"""
READV = "\tCATCH_EINTR(n = readv(fd, msg->msg_iov, msg->msg_iovlen));\n"
WRITEV = "\tCATCH_EINTR(n = writev(fd, (struct iovec *) hdr,  iovcount));\n"
SENDMMSG = "\tCATCH_EINTR(n = sendmmsg(fd, (struct mmsghdr *) msgvec, vlen, flags));\n"
RECVMMSG = "\t\tn = recvmmsg(fd, (struct mmsghdr *) msgvec, vlen, flags, 0));\n"
NOTHING_CAME = "\tif (n < 0)\n\t\treturn 0;\n"

IN_ERROR = """\
if (net_ratelimit())
	netdev_err(vp->dev, "sendmmsg err=%i\\n",
		result);
vp->in_error = true;
result = send_len;
"""
DROPPED = """\
qi->dev->stats.tx_dropped++;
qi->dev->stats.tx_packets--; /* consume_vector_skbs() counts it there */
qi->dev->stats.tx_bytes -= ((struct sk_buff *)qi->skbuff_vector[qi->head])->len;
result = 1;
"""
LEGACY_RX = "static int vector_legacy_rx(struct vector_private *vp)\n{\n"
IS_CUT = """\
static bool is_cut(struct vector_private *vp, struct sk_buff *skb, int bytes)
{
	if (!skb || bytes < skb->len) /* the whole buffer's */
		return false;
	vp->dev->stats.rx_errors++;
	vp->dev->stats.rx_length_errors++;
	return true;
}

"""
READ = "\tpkt_len = uml_vector_recvmsg(vp->fds->rx_fd, &hdr, 0);\n"
FREED = "\t\t\tif (skb != NULL)\n\t\t\t\tdev_kfree_skb_irq(skb);\n"
PREPARE_QUEUE = "\tprep_queue_for_rx(qi);\n\n\t/* Fire"
RENEW_QUEUE = """\
	for (i = 0; i < qi->max_depth && qi->max_iov_frags != vp->dev->mtu; i++) {
		if (skbuff_vector[i]) {
			consume_skb(skbuff_vector[i]);
			skbuff_vector[i] = prep_skb(vp, &mmsg_vector[i].msg_hdr);
		}
	}
	qi->max_iov_frags = vp->dev->mtu; /* that the buffers are for; nothing else reads it */
"""
BUFFER = """\
	if (vp->req_size <= linear)
		len = linear;
	else
		len = vp->req_size;
"""
BUFFER_FOR_MTU = """\
	len = max3(linear, vp->req_size, (int)vp->dev->mtu + ETH_HEADER_OTHER + vp->headroom + SAFETY_MARGIN);
"""


@dataclass(frozen=True, slots=True)
class Correction:
    """A text in a file, and its replacement."""

    file: Path
    old: str
    new: str


CORRECTIONS = (
    Correction(
        Path("arch/x86/um/user-offsets.c"), "DEFINE_LONGS(HOST_FP_SIZE, 2696);", "DEFINE_LONGS(HOST_FP_SIZE, 12288);"
    ),
    Correction(HOST / "signal.c", "static unsigned int signals_pending;", "unsigned int signals_pending;"),
    Correction(HOST / "irq.c", "static int epollfd = -1;", "int epollfd = -1;\nunsigned int epoll_found_nothing;"),
    Correction(
        HOST / "irq.c", "\treturn n;\n}\n", "\tepoll_found_nothing = n ? 0 : epoll_found_nothing + 1;\n\treturn n;\n}\n"
    ),
    Correction(TLB, MARK_ALL, MARK_ALL_THAT_ARE),
    Correction(HOST / "time.c", SLEEP_UNTIL_A_SIGNAL, SLEEP_UNTIL_THERE_IS_SOMETHING),
    # The copy lies elsewhere; the path is seen from arch/um/include/shared, one of the directories of -I.
    Correction(VECTOR_USER, '#include "vector_user.h"', '#include "../../drivers/vector_user.h"'),
    Correction(VECTOR_USER, READV, f"{READV}{NOTHING_CAME}"),
    Correction(VECTOR_USER, RECVMMSG, f"{RECVMMSG}{NOTHING_CAME}"),
    Correction(VECTOR_USER, WRITEV, f"{WRITEV}{NOTHING_CAME}"),
    Correction(VECTOR_USER, SENDMMSG, f"{SENDMMSG}\tif ((n < 0) && (errno == ENOBUFS))\n\t\treturn 1;\n"),
    *(
        Correction(VECTOR, textwrap.indent(IN_ERROR, tabs), textwrap.indent(DROPPED, tabs))
        for tabs in ("\t" * 4, "\t" * 5)  # 6.12, 6.1
    ),
    Correction(VECTOR, "\tdev->mtu = get_mtu(def);\n", "\tdev->mtu = get_mtu(def);\n\tdev->max_mtu = 9000;\n"),
    Correction(VECTOR, BUFFER, BUFFER_FOR_MTU),
    Correction(VECTOR, PREPARE_QUEUE, f"{RENEW_QUEUE}{PREPARE_QUEUE}"),
    Correction(VECTOR, LEGACY_RX, f"{IS_CUT}{LEGACY_RX}"),
    *(
        Correction(VECTOR, f"\t\tif ({size} > vp->header", f"\t\tif (!is_cut(vp, skb, {size}) && {size} > vp->header")
        for size in ("pkt_len", "mmsg_vector->msg_len")
    ),
    Correction(VECTOR, "static char *drop_buffer;", "static char drop_buffer[DROP_BUFFER_SIZE];"),
    Correction(VECTOR, "\t\tvp->dev->stats.rx_dropped++;\n\t}\n\n\tpkt_len", "\t}\n\n\tpkt_len"),
    Correction(VECTOR, READ, f"{READ}\tvp->dev->stats.rx_errors += !skb && pkt_len > 0;\n"),
    Correction(VECTOR, FREED, f"{FREED}\t\t\telse\n\t\t\t\tvp->dev->stats.rx_errors++;\n"),
    Correction(VECTOR, "= vp->rx_queue->max_depth;", "= get_depth(vp->parsed);"),
    Correction(VECTOR, "= vp->tx_queue->max_depth;", "= get_depth(vp->parsed);"),
    Correction(
        VECTOR_USER,
        '\tfd = strtofd(fdarg);\n\tif (fd == -1) {\n\t\tprintk(UM_KERN_ERR "fd open',
        '\tfd = dup(strtofd(fdarg));\n\tif (fd == -1) {\n\t\tprintk(UM_KERN_ERR "fd open',
    ),
    *(
        Correction(VECTOR, f"{lock}(&vp->{queue}->head_lock);{next_}", f"{lock}_bh(&vp->{queue}->head_lock);{next_}")
        for lock, queue, next_ in (
            ("spin_lock", "rx_queue", "\n\tvp->estats.rx_queue_max"),
            ("spin_unlock", "rx_queue", "\n\n\t/* TX stats"),
            ("spin_lock", "tx_queue", "\n\tvp->estats.tx_timeout_count"),
            ("spin_unlock", "tx_queue", "\n}\n\nstatic int get_mtu"),
        )
    ),
)  # fmt: skip


KCOV_MODE = "check_kcov_mode(enum kcov_mode needed_mode, struct task_struct *t)\n{\n\tunsigned int mode;\n"
# With KCOV alone, for the key of every image is made of its corrections.
KCOV_CORRECTIONS = (
    Correction(
        Path("kernel/kcov.c"), KCOV_MODE, f"{KCOV_MODE}\n\tif (system_state < SYSTEM_SCHEDULING)\n\t\treturn false;\n"
    ),
)


def correct(tree: Path, obj: Path, corrections: Sequence[Correction]) -> None:
    """Put corrected copies into the build directory *obj* where the source in *tree* needs them."""
    for file in {correction.file for correction in corrections}:
        source = tree / file
        text = corrected = source.read_text() if source.is_file() else ""
        for correction in corrections:
            if correction.file == file:
                corrected = corrected.replace(correction.old, correction.new)
        copy = obj / file
        if corrected != text and not (copy.is_file() and copy.read_text() == corrected):  # make goes by its time
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(corrected)
