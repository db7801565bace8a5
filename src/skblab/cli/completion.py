"""``skblab completion``: the script with which a shell completes skblab's command lines."""

import argparse

EXAMPLES = """\
examples:
  eval "$(skblab completion bash)"          in ~/.bashrc
  eval "$(skblab completion zsh)"           in ~/.zshrc, after compinit
  skblab completion fish >~/.config/fish/completions/skblab.fish

It completes commands, options, the names of labs and images, and the kernel's functions.
"""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion",
        help="print the script with which a shell completes skblab's command lines",
        description="Print the script with which a shell completes skblab's command lines.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="the shell that will read it")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the script."""
    from argcomplete import shell_integration  # noqa: PLC0415

    print(shell_integration.shellcode(["skblab"], shell=arguments.shell))
    return 0
