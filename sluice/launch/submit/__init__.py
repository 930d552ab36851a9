"""Handing a run to a cluster's own queue, and asking after the run from the machine that handed it in."""
