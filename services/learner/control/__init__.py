"""Rank 0's talk with the coordinator and with rollouts, beside training."""
