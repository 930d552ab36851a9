"""Files of a run directory that several processes write or read: their names and formats."""
