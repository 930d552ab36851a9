"""How a new version gets to the rollouts, and the probe of whether a rollout serves its version correctly."""
