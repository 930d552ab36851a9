"""One training step: from log-probabilities to an update, and the step's metrics."""
