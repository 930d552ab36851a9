"""The policy: a model folder as a function of packed sequences, its loss, its optimizer."""
