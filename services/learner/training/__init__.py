"""One training step: from log-probabilities to an update, and what it reports."""
