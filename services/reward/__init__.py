"""The reward service: grades whole groups in killable worker processes; stateless, so that services can be replicated."""
