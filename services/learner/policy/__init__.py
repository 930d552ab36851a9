"""The policy: a model folder as a function of packed sequences, the head fused with the loss, the optimizer."""
