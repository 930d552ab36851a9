"""Stubs generated from protos/sluice/v1 by `make protos`. Never edited."""
