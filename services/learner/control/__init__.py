"""Rank 0's gRPC with the coordinator and with rollouts, beside training."""
