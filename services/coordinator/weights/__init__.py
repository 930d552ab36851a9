"""How a new version gets to the rollouts, and what says that one serves it right."""
