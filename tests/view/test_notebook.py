"""The example notebook shows a held table, a packet, a trace and an RTT plot; hostile packets are text there."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from skblab import Packet, Rtts
from skblab.host import process
from skblab.summary import ETH_P_IP

NOTEBOOK = Path(__file__).parents[2] / "examples/notebook.ipynb"
RUN = """
import sys, nbclient, nbformat
notebook = nbformat.read(sys.argv[1], as_version=4)
nbclient.NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
print(nbformat.writes(notebook))
"""
HOSTILE = b"<script>document.title=1</script><img src=x onerror=alert(1)>\x1b]0;mine\x07"
UDP = bytes.fromhex("45000000000100004011000001020304050607080035303900000000")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run the notebook; return the HTML below each cell, by the cell's last line."""
    directory = tmp_path_factory.mktemp("jupyter")
    places = {f"JUPYTER_{one}_DIR": str(directory / one) for one in ("CONFIG", "RUNTIME")} | {
        "IPYTHONDIR": str(directory)
    }
    done = process.run([sys.executable, "-c", RUN, NOTEBOOK], timeout_s=100, env=os.environ | places)
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in json.loads(done.stdout)["cells"] if cell["cell_type"] == "code"]
    return {
        "".join(cell["source"]).splitlines()[-1]: "".join(one["data"]["text/html"])
        for cell in cells
        for one in cell["outputs"]
        if "text/html" in one.get("data", {})
    }


def words(html: str) -> str:
    return re.sub(r"<[^>]*>", " ", html)


def test_the_notebook_shows_what_it_has(outputs: dict[str, str]) -> None:
    assert outputs.keys() == {"held", "packets[0]", "tracer.trace()", "Rtts.of_ping(said)"}
    held = words(outputs["held"])
    assert "icmp_rcv = hold if icmp: 3 held" in held
    assert len(re.findall(r"icmp_rcv +held +\d\.\d+ s .*?ICMP echo request, id \d+, seq \d", held)) == 3
    packet = words(outputs["packets[0]"])
    assert re.search(r"icmp_rcv: .*ICMP echo request, id \d+, seq 1, length 64; held, ", packet)
    assert re.search(r"IP +version=4 .*ICMP +type=8 .*0000 +45 00 00 54", packet, re.DOTALL)
    trace = words(outputs["tracer.trace()"])
    assert re.search(r"3 journeys, \d+ steps", trace)
    assert {"ip_rcv", "icmp_rcv", "hold", "released", "icmp_reply"} <= {*re.findall(r"\w+", trace)}
    assert "3 replies, 0 lost" in outputs["Rtts.of_ping(said)"]
    assert outputs["Rtts.of_ping(said)"].count("<circle") == 3
    assert not any(re.search(r"<(script|link|img)|https?://(?!www\.w3\.org)", one) for one in outputs.values())


def test_its_file_has_no_outputs() -> None:
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        assert not cell.get("outputs")
        assert cell.get("execution_count") is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_hostile_packet_is_text(scheme: str, browser: Browser) -> None:
    shown = Packet(UDP + HOSTILE, ETH_P_IP)._repr_html_() + Rtts([0.5, 300], [1, 4])._repr_html_()
    page = browser.new_page()
    page.set_content(f"<!doctype html><title>ours</title><style>:root {{ color-scheme: {scheme} }}</style>{shown}")
    assert page.title() == "ours"
    assert page.locator("script, img, iframe, a").count() == 0
    text = page.locator("body").inner_text()
    assert "<script>document.title=1</script><img src=x onerror=alert(1)>" in text
    assert not any(ord(one) < 32 and one not in "\n\t" for one in text)
    colour = page.evaluate("getComputedStyle(document.querySelector('td')).color")
    assert colour == {"light": "rgb(0, 0, 0)", "dark": "rgb(255, 255, 255)"}[scheme]
    assert page.locator("svg circle").count() == 2
    assert page.locator("svg text", has_text="x").count() == 2
    page.close()


def test_rtts_are_a_list_of_floats() -> None:
    assert Rtts([1.0, 2.0]) == [1.0, 2.0]
    assert Rtts([1.0, 2.0], [1, 3]).lost == [2]
    assert "no replies" in Rtts()._repr_html_()
    assert Rtts([0.0])._repr_html_().count("<circle") == 1
    with pytest.raises(ValueError, match="1 RTTs, 2 sequence numbers"):
        Rtts([1.0], [1, 2])
