"""``skblab matrix`` as a user has it: scenarios on kernels and under seeds, what failed, and how often."""

import json
import shlex
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from skblab.errors import GuestCommandFailed, ImageMissing, UsageError
from skblab.image.image import Image
from skblab.spec import LabSpec
from skblab.sweep.cell import Scenario
from skblab.sweep.expect import Expected
from skblab.sweep.matrix import Matrix
from support import skblab

FILE = """
[[scenario]]
name = "a lost ping"
client = "ping -n -c2 -i1 -W1 guest"
rules = ["icmp_rcv = drop @1"]
[scenario.expect]
status = 0
stdout_has = "1 received"
duration_s = [2.0, 2.1]
counters = { "guest Icmp InEchos" = 1, "host Icmp OutEchos" = 2, "guest Icmp InErrors" = 0 }

[[scenario]]
name = "a file"
client = "sh -c 'echo yes > /root/result'"
expect = { files = { "/root/result" = "no\\n", "/root/other" = false } }

[[scenario]]
name = "by chance"
client = ["sh", "-c", "test $(od -An -N1 -tu1 /dev/urandom) -lt 128"]
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "scenario.toml"
    path.write_text(FILE)
    return path


def test_scenarios_on_two_kernels_under_four_seeds(file: Path, tmp_path: Path) -> None:
    names = {kind: str(tmp_path / f"out.{kind}") for kind in ("json", "xml", "html")}
    files = ["--json", names["json"], "--junit", names["xml"], "--html", names["html"]]
    done = skblab("matrix", str(file), "--series", "6.12,7.3", "--seed", "1..3,9", "--repeat", "2", *files)
    assert done.returncode == 1, done.stderr
    lines = [json.loads(line) for line in Path(names["json"]).read_text().splitlines()]
    cases = {(one["scenario"], one["kernel"]): one for one in lines if one["event"] == "case"}
    for kernel in ("6.12", "7.3"):
        assert cases["a lost ping", kernel]["failed"] == 0, done.stdout
        assert cases["a file", kernel]["failed"] == cases["a file", kernel]["runs"] == 8
    assert not any(one["unlike"] for one in cases.values()), done.stdout
    assert "/root/result is 'yes\\n', not what was expected" in done.stdout
    chance = [one for one in lines if one["event"] == "run" and one["scenario"] == "by chance"]
    assert len(chance) == 16
    failed = [one for one in chance if not one["passed"]]
    assert 0 < len(failed) < 16
    assert all(one["unmet"] == ["status 1, not 0"] for one in failed)
    seeds = list(dict.fromkeys(str(one["seed"]) for one in failed if one["kernel"] == failed[0]["kernel"]))
    count = 2 * len(seeds)
    word = "seed" if len(seeds) == 1 else "seeds"
    rate = f"flaky, {count} of 8 failed ({12.5 * count:.3g} %)"
    assert f"by chance on {failed[0]['kernel']}: {rate}: {word} {', '.join(seeds)}" in done.stdout.splitlines()
    assert "48 runs of 6 cases" in done.stdout
    suite = ET.parse(names["xml"]).getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("6", str(sum(one["failed"] > 0 for one in cases.values())))
    again = skblab(*shlex.split(failed[0]["command"])[1:])
    assert again.returncode == 1
    assert "a lost ping" in Path(names["html"]).read_text()


def test_one_scenario_that_passes(file: Path) -> None:
    done = skblab("matrix", str(file), "--only", "a lost ping", "--variant", "kasan")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "scenario     6.12 kasan".ljust(len(done.stdout.splitlines()[0])),
        "a lost ping  passed 1".ljust(len(done.stdout.splitlines()[0])),
        "1 run of 1 case: passed 1",
    ]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--seed", "5..1"], "no seeds: 5..1"),
        (["--seed", "x"], "no seeds: x"),
        (["--seed", "1,1"], "named twice: 1"),
        (["--repeat", "0"], "no number of runs: 0"),
        (["--only", "none"], "has no scenario called 'none'"),
        (["--series", "5.0"], "5.0"),
        (["--variant", "none"], "no such variant: none"),
    ],
)
def test_what_makes_no_sense(file: Path, options: list[str], said: str) -> None:
    done = skblab("matrix", str(file), *options)
    assert done.returncode in {2, 3}
    assert said in done.stderr
    assert "hint: " in done.stderr
    assert "Traceback" not in done.stderr


ECHO = "icmp[icmptype] == icmp-echo"


@pytest.mark.parametrize(
    ("client", "rules", "unmet"),
    [
        ("ping -n -c3 -i1 -W1 guest", [f"icmp_rcv = drop @1 if {ECHO}", "icmp_rcv = drop @1 if udp"], "rule 2 never"),
        ("ping -n -c3 -i1 -W1 guest", [f"icmp_rcv = hold 8 release reverse if {ECHO}"], "rule 1 never fired"),
        ("ping -n -c1 -s0 guest", [f"icmp_rcv = corrupt 2 if {ECHO}"], "unedited: icmp_rcv = corrupt 2"),
        ("ping -n -c1 guest", [f"icmp_rcv = edit ip.ttl=64 if {ECHO}"], "rule 1 never fired"),
    ],
    ids=["another rule's packet", "fewer than are held together", "an edit that failed", "an edit without a change"],
)
def test_what_did_not_happen_is_not_passed(image: Image, client: str, rules: list[str], unmet: str) -> None:
    command = ("sh", "-c", f"{client}; true")
    scenario = Scenario(spec=LabSpec(image=image, time="virtual"), client=command, rules=tuple(rules))
    ((_, run),) = Matrix([scenario]).run()
    assert any(one.startswith(unmet) for one in run.unmet), run.unmet


def test_an_edit_that_failed_before_the_client_hung_is_not_passed(image: Image) -> None:
    scenario = Scenario(
        spec=LabSpec(image=image, time="virtual"), client=("sh", "-c", "ping -n -c1 -s0 guest; sleep 1000"), limit_s=9,
        rules=(f"icmp_rcv = corrupt if {ECHO}",), expected=Expected(end="hung", fired=False),
    )  # fmt: skip
    ((_, run),) = Matrix([scenario]).run()
    assert [one.partition(":")[0] for one in run.unmet] == ["unedited"]


def test_a_directory_is_not_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(
        """[[scenario]]\nclient = "mkdir /root/a"\nexpect = { files = { "/root/b" = false, "/etc/passwd/b" = false } }
        [[scenario]]\nclient = "mkdir /root/a"\nexpect = { files = { "/root/a" = false } }"""
    )
    done = skblab("matrix", str(path), "--only", "#1")
    assert done.returncode == 0, done.stdout
    done = skblab("matrix", str(path))
    assert done.returncode == 1
    assert "cannot read /root/a in the guest\n  Is a directory" in done.stderr


def test_a_run_that_cannot_start_takes_no_other_with_it(tmp_path: Path) -> None:
    """The results that are there are reported, and the error comes last."""
    path, html, junit = tmp_path / "a.toml", tmp_path / "out.html", tmp_path / "out.xml"
    path.write_text(
        """[[scenario]]\nname = "good"\nclient = "true"
        [[scenario]]\nname = "bad"\nclient = "true"\nservers = ["false"]"""
    )
    files = ["--json", "-", "--html", str(html), "--junit", str(junit)]
    done = skblab("matrix", str(path), "--workers", "1", "--seed", "1..3", *files)
    assert done.returncode == GuestCommandFailed.exit_status
    assert "good on 6.12" not in done.stdout
    assert "3 of 6 runs of 2 cases: passed 1, not run 1" in done.stdout
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["seed"] for one in lines if one["event"] == "run"] == [1, 2, 3]
    assert done.stderr.startswith("skblab: bad, seed 1: ")
    assert "good" in html.read_text()
    assert ET.parse(junit).getroot().get("skipped") == "1"


def test_a_rule_that_never_fires_fails_a_run(image: Image) -> None:
    scenario = Scenario(
        spec=LabSpec(image=image, time="virtual"), client=("ping", "-n", "-c1", "guest"), rules=("icmp_rcv = drop @7",)
    )
    matrix = Matrix([scenario])
    assert [run.unmet for _, run in matrix.run()] == [("rule 1 never fired",)]
    with pytest.raises(UsageError, match="names its image"):
        Matrix([scenario], series=["6.1"])
    with pytest.raises(UsageError, match="nothing to run"):
        Matrix([])
    with pytest.raises(UsageError, match="the same"):
        Matrix([scenario, scenario])
    with pytest.raises(ImageMissing):
        Matrix([Scenario(spec=LabSpec(time="virtual"), client=("true",))], variants=["kcov"], series=["6.1"])
