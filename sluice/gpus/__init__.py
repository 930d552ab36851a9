"""The GPUs of one machine: which there are, which a run may use, and which service gets which."""
