"""The life of a run: start, steps, evaluations, and why it waits or ends."""
