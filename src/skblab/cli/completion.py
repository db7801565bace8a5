"""``skblab completion``: what a shell reads to complete skblab's words."""

import argparse

EXAMPLES = """\
examples:
  eval "$(skblab completion bash)"          in ~/.bashrc
  eval "$(skblab completion zsh)"           in ~/.zshrc, after compinit
  skblab completion fish >~/.config/fish/completions/skblab.fish

Commands and options are completed, and the names of labs, of images, and of the kernel's functions.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion",
        help="print what lets a shell complete skblab's words",
        description="Print what bash, zsh or fish reads to complete skblab's words.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell is to read it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print it."""
    from argcomplete import shell_integration  # noqa: PLC0415

    print(shell_integration.shellcode(["skblab"], shell=arguments.shell))
    return 0
