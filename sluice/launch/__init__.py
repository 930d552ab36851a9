"""Starts a whole run on this machine, keeps the run's processes alive, and leaves no process behind."""
