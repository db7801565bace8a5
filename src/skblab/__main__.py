"""``skblab``, and ``python -m skblab``: the command line; and what ends it where ``cli/outcome.py`` cannot say so.

That is a Ctrl-C in the 0.1 s that Python takes to import it, and memory that does not suffice for its sentence.
"""

import os
import sys

INTERRUPTED = 130  # cli/outcome.py, which is not imported yet
NO_MEMORY = b"skblab: this process gets no more memory\n  hint: ulimit -v unlimited; free -m\n"
MISSING = 3  # errors.MissingPrerequisite.exit_status


def main() -> int:
    """Run one command; return its exit status."""
    try:
        from skblab import cli  # noqa: PLC0415 - what takes so long

        return cli.main()
    except KeyboardInterrupt:
        sys.stderr.write("skblab: interrupted\n")
        return INTERRUPTED
    except MemoryError:
        os.write(2, NO_MEMORY)
        os._exit(MISSING)  # or Python would say in its own words that it has none


if __name__ == "__main__":
    sys.exit(main())
