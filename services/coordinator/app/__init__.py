"""Puts one coordinator together: opens what it has of the run, makes the parts, resumes, serves."""
