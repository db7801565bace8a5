"""Mistyped command lines: the error has the command's own usage, and suggests what was meant."""

import contextlib
import io
import re
import sys
from itertools import chain

import pytest

from skblab import cli
from skblab.host import process


@pytest.mark.parametrize(
    ("typed", "hint"),
    [
        ("trace ping -c1 guest", "hint: the command goes after --: skblab trace -- ping -c1 guest"),
        ("trace icmp ping -c1 guest", "hint: the command goes after --: skblab trace icmp -- ping -c1 guest"),
        ("run -q ping -c1 guest", "hint: the command goes after --: skblab run -q -- ping -c1 guest"),
        ("hold ping -i2 guest", "hint: the command goes after --: skblab hold -- ping -i2 guest"),
        ("gdb ping -c1 guest", "hint: the command goes after --: skblab gdb -- ping -c1 guest"),
        ("exec lab ping -c1 guest", "hint: the command goes after --: skblab exec lab -- ping -c1 guest"),
        ("trace tcp port 80 -- ls", "hint: a filter of several words goes in quotes: 'tcp port 80'"),
        ("trace port 80", "hint: a filter of several words goes in quotes: 'port 80'"),
        ("export run.skblab --pcap x", "near: --pcapng"),
        ("run --roo host -- true", "near: --root"),
        ("run --josn=x -- true", "near: --json"),
        ("image build --sourc x", "near: --source"),
    ],
)
def test_a_hint_at_what_was_meant(typed: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli._parse(typed.split())
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "error: unrecognized arguments: " in said
    assert said.endswith(f"\n  {hint}\n")
    assert said.startswith(f"usage: skblab {typed.split(maxsplit=1)[0]} ")


def test_without_a_word_it_says_what_it_can(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli._parse([])
    said = capsys.readouterr().err
    assert end.value.code == 2
    assert "examples:" in said
    assert "hold, delay, drop, copy, edit or trace packets" in said


def test_each_module_registers_the_commands_that_the_table_names() -> None:
    """What one command's parser does not know, no one can type."""
    listed = list(chain(*cli.MODULES.values()))
    assert set(re.findall(r"^    (\S+)", cli.parser().format_help().partition("COMMAND\n")[2], re.MULTILINE)) >= set(
        listed
    )
    for command in listed:
        said = io.StringIO()
        with contextlib.redirect_stdout(said), pytest.raises(SystemExit) as end:
            cli.parser(command).parse_args([command, "--help"])
        assert end.value.code == 0
        assert said.getvalue().startswith(f"usage: skblab {command} ")


def test_one_command_does_not_load_the_others() -> None:
    script = "import sys; from skblab import cli; cli.parser('ls'); print('\\n'.join(sys.modules))"
    loaded = process.run([sys.executable, "-c", script]).stdout.split()
    assert "skblab.cli.labs" in loaded
    assert not {"skblab.cli.run", "skblab.session", "skblab.lab", "importlib.metadata"} & set(loaded)


@pytest.mark.parametrize("command", sorted(chain(*cli.MODULES.values())))
def test_what_boots_a_kernel_can_be_given_the_memory_that_the_kernel_needs(command: str) -> None:
    """That of the variant "kasan" is more than the default."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        cli.parser(command).parse_args([command, "--help"])
    assert ("--link LINK" in said.getvalue()) == ("--memory MIB" in said.getvalue())
