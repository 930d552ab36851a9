"""Recorded groups of a run scored again, by the graders of now, to see what would have changed."""
