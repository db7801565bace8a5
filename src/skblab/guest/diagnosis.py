"""Diagnose a failed boot by what the kernel printed and how it ended.

Pure code, and the only module that knows these texts. A real boot tests each (tests/guest/test_diagnosis.py).
"""

import os
import re
import signal
from dataclasses import dataclass

from skblab.errors import BootFailed, DiskError, DiskInUse, MissingPrerequisite, SkblabError

LEAST_MIB = 20  # both series boot with 18, and die with less, each differently
LEAST_MIB_KASAN = 96  # with 80 it boots and has 5 MB left; with less it runs out later

DISK_LOCKED = re.compile(r"Failed to lock '(.*)', err = \d+")  # arch/um/drivers/ubd_kern.c open_ubd_file()
DISK_REFUSED = {
    "none": "there is no root file system on {} that the guest can mount: ext4, on the whole disk or its first part",
    "no init": "the file system on {} has no /sbin/init",
    "wrong init": "the /sbin/init on {} is for another machine, and the guest is x86-64",
}


@dataclass(frozen=True)
class Cause:
    """One cause: how to recognise it, the error, the hint.

    :param evidence: regular expression searched in the console; the texts use its groups (``errno``, and ``exit``: a
        wait(2) status in hex, as text)
    :param ended: regular expression searched in how the kernel ended
    """

    evidence: str
    what: str
    hint: str
    kind: type[SkblabError] = BootFailed
    ended: str = ""


# The first match wins: causes stand before their consequences.
CAUSES = (
    Cause(  # arch/um/os-Linux/start_up.c check_ptrace()
        r"ptrace: Operation not permitted",
        "ptrace(2) is forbidden here, and the guest kernel runs its processes by it",
        "in a container, a seccomp profile forbids it: docker run --security-opt seccomp=unconfined",
        kind=MissingPrerequisite,
    ),
    Cause(  # host/lab_init.py become_kernel()
        r"skblab: cannot start (?P<file>\S+): \[Errno 13\]",
        "the kernel {file} may not be executed",
        "its file system is mounted noexec: mount -o remount,exec DIRECTORY   (as root), or SKBLAB_CACHE=DIRECTORY\n"
        "or the file is not executable: chmod +x {file}",
        kind=MissingPrerequisite,
    ),
    Cause(
        r"skblab: cannot start (?P<file>\S+): \[Errno 8\]",
        "the kernel {file} is no program for this machine: it is damaged, or of another architecture",
        "skblab image rm IMAGE && skblab image build",
    ),
    Cause(
        r"skblab: cannot start (?P<file>\S+): \[Errno 2\]",
        "the kernel {file}, or the loader that it names (/lib64/ld-linux-x86-64.so.2), is not there",
        "skblab image build; apt-get install libc6",
    ),
    Cause(
        r"skblab: cannot start (?P<file>\S+): \[Errno (?:11|12)\] (?P<why>[^:\n]*)",
        "this machine has no room for the kernel's process: {why}",
        "ulimit -v unlimited; ulimit -u unlimited",
        kind=MissingPrerequisite,
    ),
    Cause(
        r"error while loading shared libraries: (?P<why>[^\n]*)|Inconsistency detected by ld\.so",
        "the kernel cannot be loaded: its file is damaged, or not for this machine's C library",
        "skblab image rm IMAGE && skblab image build",
    ),
    Cause(  # arch/um/kernel/um_arch.c linux_main(): a malformed size is 0
        r"Too few physical memory! Needed=\d+, given=0$", "mem= is not a size", "mem=64M"
    ),
    Cause(
        r"Too few physical memory! Needed=(?P<needed>\d+), given=(?P<given>\d+)",
        "the guest's memory is too small: {given} bytes, where the kernel itself takes {needed}",
        "--memory 64, or memory_mib=64",
    ),
    Cause(  # arch/um/kernel/physmem.c setup_physmem()
        r"setup_physmem - mapping (?P<size>\d+) bytes .*errno = -12",
        "the guest's memory, {size} bytes, does not fit into the address space that a process may have here",
        "ulimit -v unlimited, or a smaller --memory",
        kind=MissingPrerequisite,
    ),
    Cause(  # arch/um/os-Linux/mem.c create_tmp_file()
        r"^(?:write|lseek): File too large",
        "the guest's memory is a file, and larger than a file may be here",
        "ulimit -f unlimited",
        kind=MissingPrerequisite,
    ),
    Cause(
        r"(?P<where>\S+) must be not mounted noexec",
        "the guest's memory is a file in {where}, and nothing there may be executed",
        "mount -o remount,exec {where}   (as root)",
        kind=MissingPrerequisite,
    ),
    Cause(  # arch/um/kernel/trap.c bus_handler()
        r"Bus error - the host /dev/shm or /tmp mount likely just ran out of space",
        "the machine has no more memory for the guest: the guest's is a file in memory, and there is no room for it",
        "a smaller --memory, or end what needs the machine's: free -m; df /dev/shm",
        kind=MissingPrerequisite,
    ),
    Cause(
        r"", "the machine has no more memory for the guest: the guest's is a file in memory",
        "a smaller --memory, or end what needs the machine's: free -m; df /dev/shm",
        kind=MissingPrerequisite, ended="signal SIGBUS",
    ),
    Cause(
        r"", "the kernel was killed: by the machine's own lack of memory, or by somebody",
        "dmesg | tail; a smaller --memory", kind=MissingPrerequisite, ended="signal SIGKILL",
    ),
    Cause(
        r"\A(?!.*Linux version)", "the kernel died before its first message: its file is damaged",
        "skblab image check; skblab image rm IMAGE && skblab image build", ended="signal SIG(?:SEGV|ILL|BUS)",
    ),
    Cause(  # arch/um/os-Linux/skas/process.c start_userspace(), start_up.c start_ptraced_child()
        r"start_userspace : clone failed, errno = 11|clone: Resource temporarily unavailable"
        r"|fork failed: Resource temporarily unavailable",
        "this user may have no more processes here, and each program in the guest is one",
        "ulimit -u unlimited; end what you no longer need: skblab ls; skblab down --all",
        kind=MissingPrerequisite,
    ),
    Cause(
        r"System is deadlocked on memory|Out of memory and no killable processes"
        r"|panic - not syncing: Failed to allocate \d+ bytes"
        r"|panic - not syncing: [^\n]*[Oo]ut of memory",
        "the guest's memory is too small: it ran out at boot",
        f"--memory 64, or memory_mib=64; {LEAST_MIB_KASAN} at least with KASAN, where 256 are better",
    ),
    Cause(  # kernel/init/init.c load_agent(), kernel/module/main.c
        r"(?:version magic '(?P<its>[^']*)' should be '(?P<ours>[^']*)'|section size must match|disagrees about version"
        r"|Unknown symbol|Invalid module format).*skblab init: cannot load the agent",
        "the agent's module is of another kernel than the one that booted: the image's files do not belong together",
        "skblab image rm IMAGE && skblab image build",
    ),
    Cause(
        r"skblab init: cannot load the agent: Cannot allocate memory",
        "the guest's kernel has no room for the agent: in its own memory, or in the address space of its process",
        "ulimit -v unlimited; a larger --memory",
        kind=MissingPrerequisite,
    ),
    Cause(
        r"skblab init: cannot load the agent: (?P<why>[^\n]*)",
        "the agent cannot be loaded: {why}",
        "skblab image rm IMAGE && skblab image build",
    ),
    Cause(  # kernel/init/modules.c load_modules()
        r"(?P<said>(?:\w+: (?:Unknown symbol|version magic|disagrees about|unknown parameter)[^\n]*)?)[^\n]*\n?"
        r"(?:\[[^\n]*\n)*skblab init: cannot load the module (?P<module>\S+): (?P<why>[^\n]*)",
        "the module {module} cannot be loaded: {why}",
        "the kernel's own message is above: a symbol may be another module's, which --module has to load before,\n"
        "or not be exported; skblab module build DIRECTORY makes one for this kernel",
    ),
    Cause(  # init/initramfs.c unpack_to_rootfs()
        r"Initramfs unpacking failed: (?P<why>[^\n]*)",
        "the guest's first files are damaged: {why}",
        "rm {initramfs}   (it is made again)",
    ),
    Cause(  # a truncated file stays open for writing: ETXTBSY
        r"Failed to execute /init \(error -26\)",
        "the guest's first files are damaged: init is not there as a whole",
        "rm {initramfs}   (it is made again)",
    ),
    Cause(
        r"VFS: Cannot open root device \"(?:/dev/)?ram0\"",
        "the guest's first files cannot be read, or have no init",
        "rm {initramfs}   (it is made again), and look for an initrd= or rdinit= of your own",
    ),
    Cause(  # init/main.c kernel_init()
        r"Requested init (?P<init>\S+) failed \(error -2\)",
        "there is no {init} in the guest, or not the interpreter that its first line or its ELF header names",
        "init=PATH of a program that is there, as the guest sees it",
    ),
    Cause(
        r"Requested init (?P<init>\S+) failed \(error -13\)",
        "{init} is not executable",
        "chmod +x {init}, where it lies",
    ),
    Cause(
        r"Requested init (?P<init>\S+) failed \(error -8\)",
        "{init} is no program for this kernel: of another architecture, or a script without #!",
        "an init for x86-64; file {init} tells what it is",
    ),
    Cause(
        r"Requested init (?P<init>\S+) failed \(error -(?P<errno>\d+)\)", "{init} cannot be started: {errno}",
        "init=PATH of another program",
    ),
    Cause(
        r"No working init found",
        "the guest's root has none of /sbin/init, /etc/init, /bin/init, /bin/sh: it is empty, or not a root",
        "init=PATH, or a root that has one",
    ),
    Cause(
        r"VFS: Cannot open root device \"(?P<root>[^\"]*)\" or unknown-block\([^)]*\): error -2$",
        "the guest's root {root} has no such directory: rootflags= names one that is not there",
        "rootflags=/DIRECTORY that exists on this machine",
    ),
    Cause(
        r"VFS: Cannot open root device \"(?P<root>[^\"]*)\" or unknown-block\([^)]*\): error -(?P<errno>\d+)",
        "the guest's root {root} is not there: {errno}",
        "a root= that exists: /dev/ubda needs ubd0=FILE;\n"
        "a directory: root=/dev/root rootfstype=hostfs rootflags=/DIRECTORY",
    ),
    Cause(
        r"VFS: Unable to mount root fs on (?P<root>[^\n]*)",
        "the guest's root cannot be mounted: {root} has no file system that this kernel knows",
        "a disk with ext2, ext3 or ext4; file -s IMAGE tells what it has",
    ),
    Cause(  # kernel/exit.c do_exit()
        r"Attempted to kill init! exitcode=0x(?P<exit>[0-9a-f]{8})",
        "the guest's first process has ended: {exit}",
        "a first process must not end; its own output is above",
    ),
    Cause(r"", "the kernel printed its help, or its version, and ended", "without --help or --version among its "
           "arguments", ended="exit status 0$"),
)  # fmt: skip


def _exit_in_words(code: int) -> str:
    """Return a wait(2) status as text."""
    if os.WIFSIGNALED(code):
        return f"signal {signal.Signals(os.WTERMSIG(code)).name}"
    return f"exit status {os.WEXITSTATUS(code)}"


def diagnose(printed: str, ended: str, *, initramfs: str = "") -> SkblabError | None:
    """Return the error, without its evidence, for a failed boot; None if no cause matches.

    :param printed: the console's whole text
    :param ended: how the kernel ended: ``exit status 1``, ``signal SIGBUS``, or ""
    :param initramfs: its initramfs
    """
    for cause in CAUSES:
        found = re.search(cause.evidence, printed, re.MULTILINE | re.DOTALL)
        if found is None or not re.search(cause.ended, ended):
            continue
        words = {name: value or "" for name, value in found.groupdict().items()} | {"initramfs": initramfs}
        if "errno" in words:
            words["errno"] = os.strerror(int(words["errno"]))
        if "exit" in words:
            words["exit"] = _exit_in_words(int(words["exit"], 16))
        return cause.kind(cause.what.format(**words), hint=cause.hint.format(**words))
    return None


def disk_refused(disk: str, said: str, printed: str) -> SkblabError:
    """Return the error for a disk from which the guest could not boot.

    :param disk: the image, or the COW file
    :param said: the message of the guest's init (kernel/init/root.c tell_disk())
    :param printed: the console's whole text
    """
    if locked := DISK_LOCKED.search(printed):  # locked after our check of the disk and before the kernel's
        return DiskInUse(
            f"{locked[1]} was locked by another process in the meantime", hint=f"skblab disk info {locked[1]}"
        )
    why, _, error = said.partition(": ")
    what = DISK_REFUSED.get(why, "the guest could not enter {}").format(disk)
    return DiskError(what, found=error, hint="skblab disk build FILE makes one that boots")


def too_little_memory(memory_mib: int, config: str) -> SkblabError | None:
    """Return the error if a kernel of this configuration cannot boot with so little memory, or None."""
    kasan = "CONFIG_KASAN=y" in config
    least = LEAST_MIB_KASAN if kasan else LEAST_MIB
    if memory_mib >= least:
        return None
    return BootFailed(
        f"a guest with {memory_mib} MiB of memory does not boot"
        + (": its kernel is built with KASAN" if kasan else ""),
        found=f"it needs {least} MiB at least",
        hint=f"--memory {256 if kasan else 64}, or memory_mib={256 if kasan else 64}",
    )


def too_much_memory(memory_mib: int, meminfo: str) -> SkblabError | None:
    """Return the error if a machine has less memory than a guest is to have, or None.

    UML panics without a word of it where so much does not fit into its address space (arch/um/kernel/um_arch.c); where
    it fits, the guest ends once it uses more than there is.

    :param meminfo: the machine's /proc/meminfo
    """
    there_mib = sum(int(kib) for kib in re.findall(r"^(?:MemTotal|SwapTotal): +(\d+) kB", meminfo, re.MULTILINE)) >> 10
    if memory_mib <= there_mib:
        return None
    return MissingPrerequisite(
        f"no room for a guest with {memory_mib} MiB of memory",
        found=f"this machine has {there_mib} MiB, with its swap",
        hint="a smaller --memory, or memory_mib: 64 is the default",
    )
