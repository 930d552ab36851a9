"""Services without an engine behind the real protocol: what the system's benchmarks put around a real coordinator."""
