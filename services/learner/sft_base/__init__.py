"""The base model of the CPU demo, trained on demonstrations."""
