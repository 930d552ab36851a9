"""Graders in processes that can be killed, within the kernel's namespaces and limits."""
