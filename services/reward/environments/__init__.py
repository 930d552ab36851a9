"""Environments that the reward process hosts: guarded worker processes, the episodes in them, and EnvironmentService."""
