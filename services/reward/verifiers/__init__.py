"""The built-in verifiers, one module each: `NAME`, `VERSION`, `prepare()` and `grade(...)` (`ports.Verifier`).

Importing one is cheap; what is slow to import waits for `prepare()` in a worker process.
"""
