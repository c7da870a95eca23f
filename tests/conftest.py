"""For all tests: no example of a property has a deadline, because a busy machine would fail it; random faults repeat by their seed."""

import os
import random

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
SEED = os.environ.setdefault("MEGATRON_ENTROPIC_SEED", str(random.randrange(10**6)))


def pytest_report_header() -> str:
    """Shown by every run, also by those that pass."""
    return f"fault campaign: MEGATRON_ENTROPIC_SEED={SEED} repeats its draws"
