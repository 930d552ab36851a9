"""Inference engines behind the port of services.rollout.engine."""
