"""The built-in verifiers, one module each: `NAME`, `VERSION`, `prepare()` and `grade(...)` (`ports.Verifier`).

Importing a verifier is cheap; slow imports wait for `prepare()` in a worker process.
"""
