"""A step of a run trained again from its records, alone, to see whether it gives the same figures."""
