"""A directory as the root of a guest's programs: only they see their writes."""

import os
import tempfile
from pathlib import Path

import pytest

from skblab.errors import UsageError
from skblab.host import process
from skblab.image.image import Image
from skblab.lab import Lab
from support import read_until

SHELL = """
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>
int main(void)
{
	int fd = open("/kept", O_CREAT | O_RDWR, 0644);
	printf("written: %zd, read-only file gone: %d\\n", write(fd, "x", 1), unlink("/bin/marker"));
	fflush(stdout);
	pause();
}
"""


def test_what_is_written_in_the_hosts_tree_stays_in_memory(every_image: Image, tmp_path: Path) -> None:
    marker = Path("/etc") / f"skblab-{tmp_path.parent.name}-{tmp_path.name}"
    with Lab(image=every_image, root="host") as lab:
        assert lab.terminal
        read_until(lab.terminal.fd, lambda text: "guest#" in text)
        os.write(
            lab.terminal.fd,
            f"echo kept > {marker}; cat {marker}; rm /etc/passwd; ls /etc/passwd; echo e''nd\r".encode(),
        )
        said = read_until(lab.terminal.fd, lambda text: "end\r" in text)
    assert "\nkept\r" in said
    assert "cannot access '/etc/passwd'" in said
    assert not marker.exists()
    assert Path("/etc/passwd").exists()


def test_tmp_is_this_machines_too(every_image: Image) -> None:
    """A script in /tmp is found there; what the guest writes beside it stays in its memory."""
    with tempfile.TemporaryDirectory(dir="/tmp") as directory, Lab(image=every_image, root="host") as lab:
        Path(directory, "script").write_text("echo ran >$0.out; cat $0.out\n")
        assert lab.guest.run(["sh", f"{directory}/script"]).stdout == "ran\n"
        assert [one.name for one in Path(directory).iterdir()] == ["script"]
        assert lab.guest.run(["stat", "-c", "%a", "/tmp"]).stdout == "1777\n"


def test_a_directory_of_ones_own(image: Image, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/marker").touch()
    (tmp_path / "sh.c").write_text(SHELL)
    process.run(["gcc", "-static", "-o", tmp_path / "bin/sh", tmp_path / "sh.c"]).check_returncode()
    before = sorted(tmp_path.rglob("*"))
    with Lab(image=image, root=str(tmp_path)) as lab:
        assert lab.terminal
        said = read_until(lab.terminal.fd, lambda text: "gone:" in text)
    assert "written: 1, read-only file gone: 0" in said
    assert sorted(tmp_path.rglob("*")) == before


def test_a_directory_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="no such directory"):
        Lab(root="/no/such/directory")


@pytest.mark.parametrize(("family", "resolver"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1")])
def test_a_server_of_udp_is_ready_when_it_has_bound_its_socket(
    every_image: Image, family: str, resolver: str, tmp_path: Path
) -> None:
    """And not when it has asked somebody else, as a resolver does: that socket gets a port, too."""
    server = tmp_path / "server.py"
    server.write_text(
        "import socket, time\n"
        f"asks = socket.socket(socket.{family}, socket.SOCK_DGRAM); asks.connect(({resolver!r}, 53))\n"
        f"socket.socket(socket.{family}).bind(('', 8000))\n"
        f"time.sleep(1); server = socket.socket(socket.{family}, socket.SOCK_DGRAM); server.bind(('', 5353))\n"
        "while True: server.sendto(b'here', server.recvfrom(99)[1])"
    )
    client = (
        "import socket\nclient = socket.socket(2, 2); client.connect(('192.168.10.1', 5353)); client.settimeout(5)\n"
        "client.send(b'?'); print(client.recv(9))"
    )
    with Lab(image=every_image, root="host", time="virtual", commands=[f"udp:exec python3 {server}"]) as lab:
        assert lab.run(["python3", "-c", client]).stdout == "b'here'\n"
