"""Names and formats of the files in a run directory that several processes write or read."""
