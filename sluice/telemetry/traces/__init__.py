"""Traces of a run, for OpenTelemetry: what is a trace, its ids, its spans, and where the spans go (docs/monitoring.md).

Nothing here imports opentelemetry but otlp.py, which is imported where spans go to a collector.
"""
