"""``skblab``, and ``python -m skblab``: the command line, once it is imported.

Until then, for some 0.1 s, a Ctrl-C ends the process as it ends any program, without Python's traceback.
"""

import signal
import sys


def main() -> int:
    """Import the command line, and run it; return its exit status."""
    interrupted = signal.getsignal(signal.SIGINT)
    if interrupted is signal.default_int_handler:  # not in the background, where a shell has it ignored
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from skblab import cli  # noqa: PLC0415 - that takes long

    signal.signal(signal.SIGINT, interrupted)
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
