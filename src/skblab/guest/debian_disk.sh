#!/bin/sh
# A customize hook of mmdebstrap(1): adapt the new tree to a lab, and make an ext4 image of it.
# Usage: debian_disk.sh IMAGE SIZE TREE
set -eu
image=$1 size=$2 tree=$3

chroot "$tree" passwd --delete root
echo debian >"$tree/etc/hostname"
printf '127.0.0.1 localhost debian\n::1 localhost\n192.168.10.254 host\n192.168.10.1 guest\n' >"$tree/etc/hosts"
echo '/dev/ubda / ext4 defaults 0 1' >"$tree/etc/fstab"
: >"$tree/etc/machine-id"
rm -f "$tree/etc/resolv.conf"

# A login on every console on the kernel's command line: con2= is tty2, and so on.
for number in 1 2 3 4 5 6; do
	unit=$tree/etc/systemd/system/getty@tty$number.service.d
	mkdir -p "$unit" "$tree/etc/systemd/system/getty.target.wants"
	printf '[Unit]\nConditionKernelCommandLine=con%d\n' $number >"$unit/skblab.conf"
	ln -sf /lib/systemd/system/getty@.service "$tree/etc/systemd/system/getty.target.wants/getty@tty$number.service"
done
# A small disk that boots fast: nothing waits for devices of a real machine.
for unit in apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer fstrim.timer e2scrub_reap.service; do
	ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
find "$tree/var/cache/apt" "$tree/var/lib/apt/lists" -type f -delete

# The tree without mounts inside it: a bind mount is not recursive.
unshare --mount sh -euc 'mount --bind "$2" /mnt && cd /mnt && exec mke2fs -q -F -t ext4 -L root -d . "$0" "$1"' \
	"$image" "$size" "$tree"
