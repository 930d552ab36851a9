"""The coordinator's memory: groups, services, the run's progress. No sockets and no files."""
