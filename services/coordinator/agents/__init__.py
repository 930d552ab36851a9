"""Agents that bring their own loop: they take episodes over HTTP, ask for turns, and say how the episode ended."""
