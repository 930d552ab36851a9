"""What the coordinator knows: groups, services, the run's progress. Memory alone, no sockets and no files."""
