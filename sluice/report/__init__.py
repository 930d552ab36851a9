"""What is left of a run when it has ended: its curves, its summary, a look at its samples."""
