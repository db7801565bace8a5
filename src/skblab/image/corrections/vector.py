"""Faults of the vector device (arch/um/drivers/vector_kern.c, vector_user.c), which is the guest's end of every link.

**Locks of the vector device.** vector_reset_stats() takes, with softirqs enabled, a lock that vector_poll() takes in a
softirq. On one CPU this is harmless, but lockdep reports it and then turns itself off. 6.1 takes none there.

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
"""

import textwrap
from pathlib import Path

from skblab.image.corrections.fault import Change, Correction, Fault, Sign

VECTOR = Path("arch/um/drivers/vector_kern.c")
VECTOR_USER = Path("arch/um/drivers/vector_user.c")

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


QUEUE_LOCKS = (
    ("spin_lock", "rx_queue", "head_lock);\n\tvp->estats.rx_queue_max"),
    ("spin_unlock", "rx_queue", "head_lock);\n\n\t/* TX stats"),
    ("spin_lock", "tx_queue", "head_lock);\n\tvp->estats.tx_timeout_count"),
    ("spin_unlock", "tx_queue", "head_lock);\n}\n\nstatic int get_mtu"),
)


def _refused(tabs: str) -> Correction:
    return Correction((
        Change(VECTOR_USER, READV, f"{READV}{NOTHING_CAME}"),
        Change(VECTOR_USER, RECVMMSG, f"{RECVMMSG}{NOTHING_CAME}"),
        Change(VECTOR_USER, WRITEV, f"{WRITEV}{NOTHING_CAME}"),
        Change(VECTOR_USER, SENDMMSG, f"{SENDMMSG}\tif ((n < 0) && (errno == ENOBUFS))\n\t\treturn 1;\n"),
        Change(VECTOR, textwrap.indent(IN_ERROR, tabs), textwrap.indent(DROPPED, tabs)),
    ))  # fmt: skip


VECTOR_FAULTS = (
    Fault(
        name="a frame that the link refuses",
        does="after one such frame the guest sends nothing more on the link",
        corrections=(_refused("\t" * 4), _refused("\t" * 5)),  # 6.12, 6.1
    ),
    Fault(
        name="jumbo frames",
        does="the MTU of the guest's links is 1,500 at most",
        corrections=(
            Correction((
                Change(VECTOR, "\tdev->mtu = get_mtu(def);\n", "\tdev->mtu = get_mtu(def);\n\tdev->max_mtu = 9000;\n"),
                Change(VECTOR, BUFFER, BUFFER_FOR_MTU),
                Change(VECTOR, PREPARE_QUEUE, f"{RENEW_QUEUE}{PREPARE_QUEUE}"),
            )),
        ),
    ),
    Fault(
        name="a truncated frame",
        does="a frame longer than its buffer is delivered without its end; a guest short of memory ends its link",
        corrections=(
            Correction((
                Change(VECTOR, LEGACY_RX, f"{IS_CUT}{LEGACY_RX}"),
                *(
                    Change(VECTOR, f"\t\tif ({n} > vp->header", f"\t\tif (!is_cut(vp, skb, {n}) && {n} > vp->header")
                    for n in ("pkt_len", "mmsg_vector->msg_len")
                ),
                Change(VECTOR, "static char *drop_buffer;", "static char drop_buffer[DROP_BUFFER_SIZE];"),
                Change(VECTOR, "\t\tvp->dev->stats.rx_dropped++;\n\t}\n\n\tpkt_len", "\t}\n\n\tpkt_len"),
                Change(VECTOR, READ, f"{READ}\tvp->dev->stats.rx_errors += !skb && pkt_len > 0;\n"),
                Change(VECTOR, FREED, f"{FREED}\t\t\telse\n\t\t\t\tvp->dev->stats.rx_errors++;\n"),
            )),
        ),
    ),
    Fault(
        name="the length of missing queues",
        does="ethtool -g makes the kernel panic",
        corrections=(
            Correction((
                Change(VECTOR, "= vp->rx_queue->max_depth;", "= get_depth(vp->parsed);"),
                Change(VECTOR, "= vp->tx_queue->max_depth;", "= get_depth(vp->parsed);"),
            )),
        ),
    ),
    Fault(
        name="a link's descriptor",
        does="a link that goes down and comes up may use another file's descriptor",
        corrections=(
            Correction((
                Change(
                    VECTOR_USER,
                    '\tfd = strtofd(fdarg);\n\tif (fd == -1) {\n\t\tprintk(UM_KERN_ERR "fd open',
                    '\tfd = dup(strtofd(fdarg));\n\tif (fd == -1) {\n\t\tprintk(UM_KERN_ERR "fd open',
                ),
            )),
        ),
    ),
    Fault(
        name="locks of the vector device",
        does="lockdep reports the device's lock and turns itself off",
        corrections=(
            Correction(
                tuple(
                    Change(VECTOR, f"{lock}(&vp->{queue}->{after}", f"{lock}_bh(&vp->{queue}->{after}")
                    for lock, queue, after in QUEUE_LOCKS
                )
            ),
        ),
        absent=(
            Sign(
                "vector_reset_stats() takes no lock",
                VECTOR,
                has=("vector_reset_stats(struct vector_private *vp)\n{\n\tvp->estats.rx_queue_max = 0;\n",),
            ),
        ),
    ),
)  # fmt: skip
