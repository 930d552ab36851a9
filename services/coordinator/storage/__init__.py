"""What outlasts the coordinator: Redis and the run directory."""
