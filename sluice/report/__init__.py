"""Reports on a run: its curves, its summary, its ledger, the life of one group, a look at its samples."""
