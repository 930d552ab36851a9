"""Parts of benchmarks/traces.py."""
