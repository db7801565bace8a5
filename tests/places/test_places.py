"""Hostile places: if a stream, directory, limit or permission is missing, a command ends with one clear error.

Each row is a few lines of shell in a user and mount namespace of their own, as its root and in an empty directory,
which is HOME; ``run`` in it is XDG_RUNTIME_DIR. The last line's status is the row's.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from skblab.host import process
from skblab.image.image import Image

TIMEOUT_S = 60
# weak: without the power that root has over files. full: a file system without room; lite: one with 1 MiB.
FUNCTIONS = """
skblab() { "$PYTHON" -m skblab "$@"; }
weak() { setpriv --bounding-set=-all --inh-caps=-all "$PYTHON" -m skblab "$@"; }
lite() { mkdir -p "$1"; mount -t tmpfs -o size=1m none "$1"; }
full() { lite "$1"; dd if=/dev/zero of="$1/filler" bs=64k 2>/dev/null || true; }
readonly_() { mkdir -p "$1"; mount -t tmpfs -o ro none "$1"; }
no_tmp() {  # with the checkout and the cache, if they are in there
    mount --rbind "$ROOT" /srv; mount --rbind "$SKBLAB_CACHE" /media; mount -t tmpfs none /tmp
    mkdir -p "$ROOT" "$SKBLAB_CACHE"; mount --rbind /srv "$ROOT"; mount --rbind /media "$SKBLAB_CACHE"
    mount -o remount,ro none /tmp
}
linked() { mkdir -p "cache/images/$NAME"; ln -s "$IMAGE"/* "cache/images/$NAME/"; export SKBLAB_CACHE="$PWD/cache"; }
described() { mkdir -p cache/images/x; echo "$1" >cache/images/x/manifest.json; export SKBLAB_CACHE="$PWD/cache"; }
garbled() { size=$(stat -Lc %s "$1"); rm "$1"; head -c "$size" /dev/urandom >"$1"; chmod 755 "$1"; }
"""


@dataclass(frozen=True)
class Place:
    """What is done there, what it has to say, and the status.

    :param never: what it must not say
    """

    name: str
    script: str
    status: int
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()


NO_IMAGES_DIRECTORY = ("cannot use the directory of images", "hint: SKBLAB_CACHE=DIR")
NO_NAMES_DIRECTORY = ("cannot use the directory of labs' names", "hint: XDG_RUNTIME_DIR=DIR")
NO_OUTPUT = ("skblab: cannot write to standard output\n  No space left on device",)
FEW_FILES = ("may not have so many files open", "ulimit -n")
NO_FILES = ("may open no more files", "ulimit -n 1024")

DIRECTORIES = (
    Place("cache-file", "touch c; SKBLAB_CACHE=$PWD/c skblab image ls", 3,
          (*NO_IMAGES_DIRECTORY, "/c is no directory")),
    Place("cache-link", "ln -s no/such c; SKBLAB_CACHE=$PWD/c skblab image ls", 3,
          (*NO_IMAGES_DIRECTORY, "/c is a link to no/such, which is not there")),
    Place("cache-shut", "mkdir c; chmod 500 c; SKBLAB_CACHE=$PWD/c weak image ls", 3,
          (*NO_IMAGES_DIRECTORY, "Permission denied")),
    Place("cache-unreadable", "mkdir -p c/images; chmod 0 c/images; SKBLAB_CACHE=$PWD/c weak image ls", 3,
          (*NO_IMAGES_DIRECTORY, "Permission denied")),
    Place("cache-read-only", "readonly_ c; SKBLAB_CACHE=$PWD/c skblab run -- true", 3,
          (*NO_IMAGES_DIRECTORY, "Read-only file system")),
    Place("cache-doctor", "touch c; SKBLAB_CACHE=$PWD/c skblab doctor", 3, ("NO  image", *NO_IMAGES_DIRECTORY[:1])),
    Place("home-file", "unset SKBLAB_CACHE; touch h; HOME=$PWD/h skblab image ls", 3,
          (*NO_IMAGES_DIRECTORY, "/h is no directory")),
    Place("home-unknown", "unset SKBLAB_CACHE HOME; unshare --user --map-user=4711 $PYTHON -m skblab image ls", 3,
          ("this user has no home directory for the cache", "SKBLAB_CACHE=DIR")),
    Place("home-tilde", "skblab run --disk '~nobody-at-all/x' -- true", 1, ("cannot read", "No such file")),
    Place("names-file", "touch run/skblab; skblab ls", 3, (*NO_NAMES_DIRECTORY, "run/skblab is no directory")),
    Place("names-link", "ln -s nowhere run/skblab; skblab ls", 3, (*NO_NAMES_DIRECTORY, "a link to nowhere")),
    Place("names-read-only", "readonly_ run; skblab ls", 3, (*NO_NAMES_DIRECTORY, "Read-only file system")),
    Place("names-read-only-run", "readonly_ run; skblab run -- true", 3, NO_NAMES_DIRECTORY),
    Place("names-full", "full run; skblab run --name x -- true; echo status $?; ls run/skblab", 0,
          ("run/skblab/x.lab\n  No space left on device", "make room there: df -h", "status 1"), ("\nx.lab",)),
    Place("names-open-to-others", "mkdir -m 755 run/skblab; skblab ls", 3,
          ("is not a directory of yours alone", "mode 755", "hint: chmod 700 ")),
    Place("names-tmp", "unset XDG_RUNTIME_DIR; no_tmp; skblab ls", 3, NO_NAMES_DIRECTORY),
    Place("name-fifo", "mkdir -m 700 run/skblab; mkfifo run/skblab/x.lab; skblab ls", 0, ("no lab runs",)),
    Place("name-fifo-taken", "mkdir -m 700 run/skblab; mkfifo run/skblab/x.lab; skblab run --name x -- true", 1,
          ("run/skblab/x.lab", "it is no file of a lab")),
    Place("name-directory", "mkdir -m 700 run/skblab; mkdir run/skblab/x.lab; skblab run --name x -- true", 1,
          ("run/skblab/x.lab", "Is a directory")),
    Place("names-stale", "mkdir -m 700 run/skblab; cd run/skblab; touch a.lab a.socket; skblab ls; ls", 0,
          ("no lab runs",), ("a.lab", "a.socket")),
    Place("no-temporary-directory", "unset TMPDIR; mount --bind run /mnt; export XDG_RUNTIME_DIR=/mnt; cd /proc;"
          "no_tmp; mount -t tmpfs -o ro none /var/tmp; skblab trace -q -- true", 3,
          ("No usable temporary directory", "TMPDIR=DIR")),
)  # fmt: skip

IMAGES = (
    Place("image-unreadable", "linked; mkdir -p cache/images/6.12-default-x; chmod 0 cache/images/6.12-default-x;"
          "weak image ls", 1, ("image 6.12-default-x cannot be read by this user", "chmod -R a+rX")),
    Place("manifest-list", "described '[]'; skblab image ls", 1,
          ("image x: manifest.json was written by another version of skblab", "skblab image rm x")),
    Place("manifest-empty", "described '{}'; skblab image ls", 1, ("manifest.json was written by another version",)),
    Place("manifest-number", "described '{\"series\":1,\"variant\":1,\"release\":1,\"recipe\":1,\"corrections\":{},'"
          "'\"files\":{}}'; skblab image ls", 1, ("image x: manifest.json cannot be read",)),
    Place("manifest-directory", "mkdir -p c/images/x/manifest.json; SKBLAB_CACHE=$PWD/c skblab image ls", 1,
          ("image x: manifest.json cannot be read", "Is a directory")),
    Place("config-garbled", "linked; garbled cache/images/$NAME/config; skblab image check; echo $?; skblab image diff "
          "$NAME $NAME; skblab run -q -- true", 0, ("is damaged: config",)),
    Place("index-garbled", "linked; garbled cache/images/$NAME/functions.sqlite; skblab probes icmp_rcv", 1,
          ("is damaged: functions.sqlite", "file is not a database", "skblab image rm")),
    Place("kernel-garbled", "linked; garbled cache/images/$NAME/vmlinux; skblab run -- true", 1,
          ("skblab image rm IMAGE && skblab image build",)),
    Place("no-gcc", "mkdir b; for one in ping ip tc; do ln -s $(command -v $one) b; done;"
          "PATH=$PWD/b skblab run -q -- ping -c1 -q guest", 0, ("1 received",), ("gcc",)),
)  # fmt: skip

STREAMS = (
    Place("run-closed", "skblab run -r 'icmp_rcv = trace' -- ping -q -c1 guest <&- >&- 2>&-", 0),
    Place("run-stdin-closed", "skblab run -q -- cat <&-", 0, (), ("Bad file descriptor",)),
    Place("run-stderr-full", "skblab run -r 'icmp_rcv = trace' -- ping -q -c1 guest 2>/dev/full", 1, ("1 received",)),
    Place("run-stderr-gone", "set -o pipefail;"
          "skblab run -r 'icmp_rcv = trace' -- ping -c3 -i0.2 guest 2>&1 >/dev/null | head -1", 1, ("icmp_rcv",)),
    Place("run-save-full", "skblab run --save a.toml -- echo hi >/dev/full", 1,
          ("cannot write what the command says", "No space left on device")),
    Place("run-save-temporary-full", "lite t; export TMPDIR=$PWD/t;"
          "skblab run --save a.toml -- sh -c 'head -c 9000000 /dev/zero' >/dev/null; echo status $?; ls a.toml;"
          "skblab sweep --verdicts drop -- sh -c 'ping -c1 guest; head -c 9000000 /dev/zero; true'", 1,
          ("t/(what the command says)\n  No space left on device", "make room there: df -h", "status 1",
           "cannot access"), ("saved: ", "cells: ")),
    Place("replay-full", "skblab run --save a.toml -- echo hi && skblab replay a.toml >/dev/full", 1,
          ("cannot write what the command says", "No space left on device"), ("the outcome is the same",)),
    Place("ls-full", "skblab ls --json >/dev/full; skblab image ls >/dev/full", 1, NO_OUTPUT),
    Place("help-full", "skblab --help >/dev/full", 1, NO_OUTPUT),
    Place("help-closed", "skblab --help >&-", 0),
    Place("doctor-full", "skblab doctor >/dev/full", 1, NO_OUTPUT),
    Place("probes-full", "skblab probes 'icmp_*' >/dev/full", 1, NO_OUTPUT),
    Place("probes-gone", "skblab probes | head -1", 0, ("(",)),
    Place("completion-full", "skblab completion bash >/dev/full", 1, NO_OUTPUT),
    Place("ping-full", "skblab ping -c1 --json >/dev/full", 1, NO_OUTPUT),
    Place("gdb-stdin-closed", "skblab gdb -ex 'print 40+2' <&-", 0, ("$1 = 42", "Detaching"), ("Undefined command",)),
    Place("trace-full", "skblab trace icmp -- ping -q -c1 guest >/dev/full", 1, NO_OUTPUT),
    Place("hold-closed", "skblab hold -- ping guest <&- >&-", 2, ("skblab hold needs a terminal",)),
    Place("up-closed", "skblab up x <&- >&- 2>&-; echo up $?;"
          "skblab exec x -- ping -q -c1 guest; skblab exec x -- cat <&-;"
          "skblab exec x -- echo said >&-; echo closed $?; skblab mconsole x version >/dev/full; echo full $?;"
          "skblab log x >/dev/full; echo full $?; skblab log x | head -1; skblab ls >/dev/full; echo full $?;"
          "SHELL= skblab shell x </dev/null; echo shell $?; skblab exec x -- ''; echo empty $?; skblab down x", 0,
          ("up 0", "1 received", "closed 0", "full 1", *NO_OUTPUT, "shell 0", "empty 127", "x is down"),
          ("full 0",)),
    Place("console-full", "skblab up x --root host; skblab console x </dev/null >/dev/full; echo console $?;"
          "skblab console x <&- >&-; echo closed $?; skblab exec --guest x -- cat <&-; echo cat $?;"
          "skblab exec --guest x -- echo said >/dev/full; echo full $?; skblab down x", 0,
          (*NO_OUTPUT, "console 1", "closed 0", "cat 0", "full 1", "x is down")),
    Place("no-command", "skblab --", 2, ("usage: skblab",)),
    Place("empty-command", "skblab run -q -- ''", 127, ("skblab: the command's name is empty",)),
    Place("no-such-command", "skblab run -q -- /no/such", 127, ("/no/such: No such file or directory",)),
)  # fmt: skip

FULL_DISKS = (
    Place("trace-disk-full", "lite d; skblab trace -o d/t icmp -- ping -q -c300 -i0.002 guest; echo status $?;"
          "skblab show d/t --packet 1", 0,
          ("skblab: cannot write d/t\n  No space left on device", "df -h d", "what was written before is whole",
           "icmp_rcv()", "status 1", "the trace is not whole")),
    Place("trace-tmp-full", "lite t; TMPDIR=$PWD/t skblab trace icmp -- ping -q -c300 -i0.002 guest", 1,
          ("(the trace)\n  No space left on device", "icmp_rcv()", "the trace is not whole")),
    Place("trace-tmp-tiny", "mkdir t; mount -t tmpfs -o size=64k none t; TMPDIR=$PWD/t skblab trace -- true", 1,
          ("(the trace)\n  No space left on device",)),
    Place("trace-device", "skblab trace -o /dev/full icmp -- true", 2, ("cannot write /dev/full", "no regular file")),
    Place("trace-fifo", "mkfifo f; skblab trace -o f icmp -- true", 2, ("cannot write f",)),
    Place("export-full", "skblab trace -q -o t icmp -- ping -q -c1 guest; full d; for kind in pcapng perfetto html; do "
          "skblab export t --$kind d/x; echo status $?; done; ls -A d; skblab show t >/dev/full; echo show $?;"
          "skblab show --json t >/dev/full; echo show $?; skblab diff t t >/dev/full; echo show $?;"
          "skblab show t | head -1", 0,
          ("skblab: cannot write d/x\n  No space left on device", "status 1", "show 1"),
          ("status 0", "status 2", "show 0", "\nx\n", ".x-")),
    Place("cp-full", "skblab up x --root host; lite d; echo whole >small; head -c 3000000 /dev/zero >large;"
          "skblab cp small x:/tmp/; skblab cp large x:/tmp/; skblab cp x:/tmp/small d; skblab cp x:/tmp/large d;"
          "echo status $?; cat d/*; ls d; skblab cp x:/tmp/small no/such; echo status $?;"
          "skblab cp x:/tmp/small d/none/; echo status $?; chmod 0 small; weak cp small x:/tmp/; echo status $?;"
          "skblab down x", 0,
          ("and there is room for", "status 1\nwhole\nsmall\nstatus 2\nstatus 2\nstatus 1\n",
           "/no\n", "no such directory: d/none/", "cannot use small\n  Permission denied")),
    Place("show-endless", "skblab show /dev/full", 2, ("is no trace of skblab",)),
    Place("show-fifo", "mkfifo f; head -c 100 /dev/urandom >f & skblab show f", 2, ("is no trace of skblab",)),
)  # fmt: skip

LIMITS = (
    Place("files-8", "ulimit -n 8; skblab run -- true", 3, FEW_FILES),
    Place("files-20", "ulimit -n 20; skblab run -- true", 3, FEW_FILES),
    Place("files-32", "ulimit -n 32; skblab run -r 'icmp_rcv = trace' -- ping -q -c1 guest", 0, ("1 received",)),
    Place("files-soft", "ulimit -Sn 8; skblab run -q -- ping -q -c1 guest", 0, ("1 received",)),
    Place("files-4-ls", "ulimit -n 4; skblab ls", 3, NO_FILES),
    Place("files-6-ls", "ulimit -n 6; skblab ls", 0, ("no lab runs",)),
    Place("memory-30", "ulimit -v 30000; skblab run -- true", 3, ("gets no more memory", "ulimit -v unlimited")),
    Place("memory-100", "ulimit -v 100000; skblab run -- true", 3, ("gets no more memory", "ulimit -v unlimited")),
    Place("memory-gdb", "ulimit -v 180000; skblab ping --holds 0.1", 1, ("gdb may not attach", "ulimit -v unlimited")),
    Place("file-size-0", "ulimit -f 0; skblab run -- true", 1, ("File too large", "ulimit -f unlimited")),
    Place("file-size-10", "ulimit -f 10; skblab run -- true", 3, ("File too large", "ulimit -f unlimited")),
    *(Place(f"namespaces-{kind}", f"echo 0 >/proc/sys/user/max_{kind}_namespaces; skblab run -- true", 3,
            (f"does not let you make a {word} namespace", f"sysctl -w user.max_{kind}_namespaces"))
      for kind, word in (("user", "user"), ("mnt", "mount"), ("pid", "PID"), ("net", "network"), ("ipc", "IPC"))),
    Place("no-proc", "mount -t tmpfs none /proc; skblab run -- true", 3, ("/proc", "skblab doctor")),
    Place("no-proc-doctor", "mount -t tmpfs none /proc; skblab doctor", 3, ("NO  /proc", "mount -t proc")),
    Place("no-dev", "mount -t tmpfs none /dev; skblab run -- true", 3, ("/dev/null", "skblab doctor")),
    Place("no-dev-doctor", "mount -t tmpfs none /dev; skblab doctor", 3, ("NO  /dev/shm", "mkdir -p /dev/shm")),
)  # fmt: skip

WORKING_DIRECTORIES = (
    Place("directory-gone", "mkdir d; cd d; rmdir ../d; skblab run -q -- ping -q -c1 guest", 0, ("1 received",)),
    Place("directory-gone-gdb", "mkdir d; cd d; rmdir ../d; skblab gdb -ex 'print 40+2' </dev/null", 0, ("$1 = 42",)),
    Place("directory-gone-relative", "mkdir d; cd d; rmdir ../d; skblab run --root . -- true", 3,
          ("the working directory is gone",)),
    Place("directory-hidden", "mkdir -p d/e; cd d/e; mount -t tmpfs none ..; skblab run -q -- ping -q -c1 guest", 0,
          ("1 received",)),
    Place("directory-of-the-labs", "mkdir /dev/shm/hidden-$$; cd /dev/shm/hidden-$$;"
          "skblab run -q -- ping -q -c1 guest; rmdir /dev/shm/hidden-$$", 0, ("1 received",)),
)  # fmt: skip

SURROUNDINGS = (
    Place("hosts-directory", "mkdir -p e/hosts; mount --bind e /etc; skblab run -q -- ping -q -c1 192.168.10.1", 0,
          ("1 received",)),
    Place("hosts-fifo", "mkdir e; mkfifo e/hosts; mount --bind e /etc; skblab run -q -- ping -q -c1 192.168.10.1", 0,
          ("1 received",)),
    Place("umask", "umask 777; skblab run -q -- ping -q -c1 guest", 0, ("1 received",)),
    Place("children-ignored", "$PYTHON -c 'import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN);"
          "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])' -m skblab run -q -- sh -c 'exit 7'", 7),
    Place("nohup", "nohup $PYTHON -m skblab run -q -- sh -c 'kill -HUP $PPID; exec sleep 0.5'", 0, ("lost: 0",)),
    Place("gdb-that-is-none", "SKBLAB_GDB=/bin/true skblab trace --field 'skb->dev->name' -- true", 2,
          ("gdb could not look fields up",)),
    Place("gdb-nowhere", "SKBLAB_GDB=/no/such skblab gdb", 3, ("/no/such: no such program", "unset SKBLAB_GDB")),
    Place("no-environment", "env -i SKBLAB_CACHE=$SKBLAB_CACHE $PYTHON -m skblab run -- /bin/true", 0),
    Place("name-of-bytes", "d=$(printf 'd\\377'); mkdir \"$d\"; cd \"$d\"; skblab trace -q -o \"$d\" -- true;"
          'skblab export "$d" --html x; skblab show "$d$d"', 2, ("cannot read d\\udcffd\\udcff",)),
    Place("encoding", "export PYTHONIOENCODING=ascii; skblab show ü", 2, ("cannot read ", "No such file")),
    Place("root-shut", "mkdir r; chmod 0 r; weak run -q --root r -- true; skblab run --root r/none -- true", 2,
          ("no such directory: r/none",)),
    Place("name-garbled", "mkdir -m 700 run/skblab;"
          "exec 9>run/skblab/x.lab; flock 9; echo garbage >&9; skblab ls;"
          "skblab run --name x -- true; echo status $?; exec 9>&-; skblab ls; ls run/skblab", 0,
          ("no lab runs", "its file does not say whose it is", "status 1"), ("\nx.lab",)),
)  # fmt: skip

PLACES = (*DIRECTORIES, *IMAGES, *STREAMS, *FULL_DISKS, *LIMITS, *WORKING_DIRECTORIES, *SURROUNDINGS)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.name)
def test_one_sentence_and_a_status(place: Place, image: Image, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    environment = os.environ | {
        "PYTHON": sys.executable,
        "ROOT": str(Path(__file__).parents[2]),
        "HOME": str(tmp_path),
        "XDG_RUNTIME_DIR": str(tmp_path / "run"),
        "SKBLAB_CACHE": str(image.path.parents[1]),
        "IMAGE": str(image.path),
        "NAME": image.name,
    }
    script = f"cd {tmp_path}{FUNCTIONS}{place.script}"
    argv = ["unshare", "--user", "--map-root-user", "--mount", "bash", "-c", script]
    done = process.run(argv, env=environment, timeout_s=TIMEOUT_S)
    said = done.stdout + done.stderr
    assert done.returncode == place.status, said
    for words in place.says:
        assert words in said
    for words in ("Traceback", "a fault of skblab itself", *place.never):
        assert words not in said
