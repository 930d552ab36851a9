"""A run put right: what Redis forgot, and what is given up by a rollback."""
