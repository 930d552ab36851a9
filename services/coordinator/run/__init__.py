"""The life of a run: start, steps, evaluations, and why the run waits or ends."""
