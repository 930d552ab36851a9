"""Procedural tasks that come with Sluice: prompts, verifier and demonstrations as pure functions of a seed."""
