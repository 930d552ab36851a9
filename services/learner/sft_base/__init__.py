"""The base models of the CPU demos, trained on demonstrations."""
