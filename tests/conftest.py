"""For all tests: no example of a property has a deadline, because a busy machine would fail it."""

from hypothesis import settings

settings.register_profile("no_deadline", deadline=None)
settings.load_profile("no_deadline")
