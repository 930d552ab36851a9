"""Recovery: the repair of a Redis that has forgotten writes, and rollbacks."""
