"""Batches: the groups of one step, how a batch crosses ranks, and which rank computes which part of a batch."""
