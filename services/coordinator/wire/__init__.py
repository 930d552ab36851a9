"""The coordinator's calls to other services, and its groups as messages."""
