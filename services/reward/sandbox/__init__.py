"""Graders in processes that can be killed, behind what the kernel offers to shut them in."""
