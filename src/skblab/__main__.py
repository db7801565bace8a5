"""``skblab``, and ``python -m skblab``: the command line; and a Ctrl-C in the 0.1 s that Python takes to import it."""

import sys

INTERRUPTED = 130  # cli/outcome.py, which is not imported yet


def main() -> int:
    """Run one command; return its exit status."""
    try:
        from skblab import cli  # noqa: PLC0415 - what takes so long

        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("skblab: interrupted\n")
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
