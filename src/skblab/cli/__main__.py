"""Run the command line with ``python -m skblab.cli``."""

import sys

from skblab.cli import main

sys.exit(main())
