"""Trains one step of a run again from the run's records, without the run, and compares the figures."""
