"""The user's own modules: built, loaded, probed, unloaded; and the errors for bad ones."""

import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from skblab.errors import BootFailed, BuildFailed, SkblabError, UsageError
from skblab.guest.modules import Module
from skblab.image.image import Image
from skblab.image.module import build_own
from skblab.image.recipe import SERIES
from skblab.image.store import find_image
from skblab.lab import Lab
from support import skblab

MINE = """
#include <linux/ip.h>
#include <linux/module.h>
#include <linux/netfilter_ipv4.h>
#include <linux/skbuff.h>
#include <net/net_namespace.h>

static bool drop;
module_param(drop, bool, 0644);

noinline unsigned int mine_look(struct sk_buff *skb, int weight)
{
	return drop && ip_hdr(skb)->protocol == IPPROTO_ICMP && weight ? NF_DROP : NF_ACCEPT;
}

static unsigned int mine_hook(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	return mine_look(skb, 2);
}

static const struct nf_hook_ops ops = {
	.hook = mine_hook, .pf = NFPROTO_IPV4, .hooknum = NF_INET_LOCAL_IN, .priority = NF_IP_PRI_FILTER,
};

static int __init mine_init(void)
{
	return nf_register_net_hook(&init_net, &ops);
}

static void __exit mine_exit(void)
{
	nf_unregister_net_hook(&init_net, &ops);
}

module_init(mine_init);
module_exit(mine_exit);
MODULE_LICENSE("GPL");
MODULE_DESCRIPTION("Looks at packets for this machine");
"""
UNLOAD = "import ctypes; raise SystemExit(ctypes.CDLL(None).syscall(176, b'mine', 0o4000))"  # delete_module(2)
PING = ("ping", "-n", "-c", "1", "-W", "5", "guest")


def build(image: Image, directory: Path, source: str = MINE) -> Path:
    directory.mkdir()
    (directory / "Kbuild").write_text("obj-m := mine.o\n")
    (directory / "mine.c").write_text(source)
    (file,) = build_own(image.path, directory)
    return file


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The module for each series."""
    directory = tmp_path_factory.mktemp("modules")
    return {series: build(find_image(series), directory / series) for series in SERIES}


@pytest.fixture
def mine(built: dict[str, Path], every_image: Image) -> Iterator[Lab]:
    with Lab(image=every_image, modules=[str(built[every_image.series])], root="host") as lab:
        yield lab


def test_its_functions_are_stopped_at_like_any_other(mine: Lab) -> None:
    function = mine.image.functions.lookup("mine_look")
    assert function
    assert function.signature == "unsigned int mine_look(struct sk_buff *skb, int weight)"
    assert function.file.endswith("mine.c")
    with mine.probe("mine_look", "icmp") as probe:
        assert mine.run(PING).returncode == 0
        (hit,) = probe.take(1)
        assert "echo request" in hit.packet.summary()
    with mine.trace(["mine_*", "icmp_rcv"]) as tracer:
        mine.run(PING)
    assert [step.function.name for step in tracer.trace().steps][:3] == ["mine_hook", "mine_look", "icmp_rcv"]


def test_gdb_knows_its_source(mine: Lab) -> None:
    with mine.debugger() as debugger:
        number = debugger.set_stop("mine_look")
        client = mine.popen(PING)
        debugger.resume()
        stopped = debugger.wait_stop(20)
        assert [frame.function for frame in stopped.frames][:2] == ["mine_look", "mine_hook"]
        assert stopped.frames[0].file.endswith("mine.c")
        debugger.clear_stop(number)
        debugger.resume()
        assert client.wait(20) == 0


def test_one_that_is_unloaded_takes_its_probes_with_it(mine: Lab) -> None:
    with mine.probe("mine_look"), mine.trace(["mine_hook"]), mine.probe("icmp_rcv") as stays:
        before = mine.agent.channel.probes
        mine.guest.run([sys.executable, "-c", UNLOAD], check=True)
        assert mine.agent.channel.probes == before - 2
        assert mine.run(PING).returncode == 0
        assert stays.take(1)
    assert mine.agent.channel.probes == 0
    with pytest.raises(SkblabError, match="the agent refused: arming mine_look"), mine.probe("mine_look"):
        pass
    assert mine.run(PING).returncode == 0


def test_parameters_and_joining(built: dict[str, Path], image: Image) -> None:
    name = f"own-module-{os.getpid()}"
    with Lab(name, image=image, modules=[f"{built[image.series]},drop=1"]) as lab:
        lab.keep()
    done = skblab("run", "--lab", name, "-r", "mine_look = trace", "--", *PING)
    assert "100% packet loss" in done.stdout
    assert "mine_look = trace: arrived 1, traced 1" in done.stdout + done.stderr
    with Lab.join(name) as lab:
        assert lab.image.functions.lookup("mine_hook")
    asked = ["gdb", name, "-ex", "info line mine_look", "-ex", "quit"]
    assert re.search(r'Line \d+ of ".*mine.c"', skblab(*asked).stdout)
    assert skblab("down", name).returncode == 0


def test_a_parameter_that_it_does_not_have(built: dict[str, Path], every_image: Image) -> None:
    """The kernel only notes in its log that it ignores one."""
    file = built[every_image.series]
    with pytest.raises(UsageError, match="the module mine has no parameter dorp\n  hint: modinfo -p /"), \
         Lab(image=every_image, modules=[f"{file},drop=0,dorp=1"]):  # fmt: skip
        pass


def test_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "mine.c").write_text(MINE)
    assert "no Kbuild or Makefile there says obj-m" in skblab("module", "build", str(tmp_path)).stderr
    (tmp_path / "Makefile").write_text("obj-m := mine.o\n")
    assert skblab("module", "build", str(tmp_path)).stdout == f"{tmp_path}/mine.ko\n"
    done = skblab("run", "--module", f"{tmp_path}/mine.ko,drop=1", "--", *PING)
    assert "100% packet loss" in done.stdout
    (tmp_path / "mine.c").write_text("this is not C\n")
    assert "error: " in skblab("module", "build", str(tmp_path)).stderr


def test_what_is_no_module_for_this_kernel(built: dict[str, Path], image: Image, tmp_path: Path) -> None:
    other = next(file for series, file in built.items() if series != image.series)
    for file, words in (
        (other, "was built for Linux 6.1"),
        (tmp_path / "none.ko", "no such module"),
        (image.kernel, "is no kernel module"),
        (Path(__file__), "is no kernel module"),
    ):
        with pytest.raises(UsageError, match=words), Lab(image=image, modules=[str(file)]):
            pass
    with pytest.raises(UsageError, match="a module's parameter"):
        Module.parse(f"{other},a b")


def test_one_that_cannot_be_loaded(image: Image, tmp_path: Path) -> None:
    unhappy = MINE.replace("return nf_register_net_hook(&init_net, &ops);", "return -ENODEV;")
    with pytest.raises(BootFailed, match="the module mine cannot be loaded: No such device"), \
         Lab(image=image, modules=[str(build(image, tmp_path / "unhappy", unhappy))]):  # fmt: skip
        pass
    with pytest.raises(BuildFailed, match="nobody_has_this"):
        build(image, tmp_path / "unknown", MINE + "\nvoid nobody_has_this(void);\nvoid x(void){ nobody_has_this(); }")
    twice = built_twice(image, tmp_path)
    with pytest.raises(BootFailed, match="the module mine cannot be loaded: File exists"), \
         Lab(image=image, modules=twice):  # fmt: skip
        pass


def built_twice(image: Image, tmp_path: Path) -> list[str]:
    first = build(image, tmp_path / "first")
    shutil.copyfile(first, tmp_path / "second.ko")
    return [str(first), str(tmp_path / "second.ko")]
