"""How long it may take to move, read, write or load so many bytes of weights, before whoever does it counts as dead.

Coordinator and rollout agree on these limits: a call waits as long as the work behind it may take. Each limit is time for the
bytes at a stated slowest rate; what does not depend on bytes (`weights.timeout_s`, `rollout.step_timeout_s`) comes on top.
"""

LINK_BYTES_PER_S = 50e6
"""The slowest link. Chosen: half of a gigabit link."""

HOST_BYTES_PER_S = 100e6
"""The slowest machine, for each thing that it does with all bytes: digest, read or write a file, merge adapters, load into
an engine. Chosen: two fifths of what two tensor-parallel engines on two overloaded cores took (docs/weights.md)."""


def transfer_s(total_bytes: int) -> float:
    """For bytes that cross a link."""
    return total_bytes / LINK_BYTES_PER_S


def handling_s(total_bytes: int) -> float:
    """For one thing that a machine does with all bytes."""
    return total_bytes / HOST_BYTES_PER_S
