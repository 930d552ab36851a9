"""Hypothesis without per-example deadlines: the first call of torch on a busy machine takes longer than any of them."""

from hypothesis import settings

settings.register_profile("sluice", deadline=None, max_examples=50)
settings.load_profile("sluice")
