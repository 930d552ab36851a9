"""Environments that a recipe names without a file: calculator, python, search, second-try (docs/environments.md)."""
