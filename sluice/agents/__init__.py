"""Workers that take episodes from a run's gateway and play them with somebody else's environments (docs/environments.md)."""
