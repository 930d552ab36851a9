"""The current weights as one packed snapshot on the leader."""
