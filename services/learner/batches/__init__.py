"""Batches: what is trained, how it crosses ranks, and who computes which part of it."""
