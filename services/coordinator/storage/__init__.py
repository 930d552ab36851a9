"""The records that outlast the coordinator: Redis and the run directory."""
