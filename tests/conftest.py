"""Settings that every test shares."""

import os

from hypothesis import settings

# No deadline: a slow moment of a shared machine is no bug, and pytest-timeout ends what hangs.
# In CI the examples are the same in every run, so that a failure is the change's and not chance's.
settings.register_profile("dev", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True, database=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))
