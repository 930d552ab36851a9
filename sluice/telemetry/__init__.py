"""Logs, metrics, and the catalogue of metrics."""
