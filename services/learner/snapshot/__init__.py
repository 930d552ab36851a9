"""The weights held, as one packed snapshot on the leader."""
