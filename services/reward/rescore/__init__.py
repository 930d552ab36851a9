"""Scores the recorded groups of a run again with today's graders, to see what would have changed."""
