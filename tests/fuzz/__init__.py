"""Input that nobody means well, thought of by Hypothesis."""

import os

from hypothesis import HealthCheck, settings

EXAMPLES = int(os.environ.get("SKBLAB_FUZZ_EXAMPLES", "100"))
LONGEST_S = 10  # for one; libpcap's optimizer is the slowest of all

fuzzed = settings(
    max_examples=EXAMPLES, deadline=LONGEST_S * 1000, suppress_health_check=list(HealthCheck), print_blob=True
)
