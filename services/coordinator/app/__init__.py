"""Puts one coordinator together: opens the run's data and records, makes the parts, resumes, serves."""
