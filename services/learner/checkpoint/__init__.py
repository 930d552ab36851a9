"""Checkpoints and Hugging Face folders."""
