"""Starts a whole run on this machine, keeps its processes alive, and leaves nothing behind."""
