"""How Sluice's services speak gRPC: limits, statuses, health, registration."""
