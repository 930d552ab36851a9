"""How old trained tokens may get, and the gate that bounds it without throwing work away.

Not in the paper, which alternates generation and training. The age of a token is the step that trains it minus the
version that sampled it; the oldest token of a group counts. Step s starts from version s, so age 0 is on-policy.

The bound. Let s be the next step to be assigned, B the groups of a batch, K = `max_staleness`. Live groups (in flight,
or accepted and not yet assigned) are ranked 0, 1, ... in order of admission. A group of rank r whose oldest token has
version v is *in time* iff

    s + floor(r / B) - v <= K                                                                           (I)

Claim: if every group is in time when the group starts, and no assignment breaks (I) for a group left behind, then no
trained token is older than K and no accepted group ever expires. The gate cannot close for good. docs/staleness.md proves
both; services/coordinator/groups/assignment.py waits for the groups in flight for which an assignment would break (I).

Groups may also start ahead of the verdicts on the groups before them: the gate is then asked for the rank that a group will
probably have (`coordinator.refill_confidence`), and what turns out one too many is dropped. No trained token is older for it.

At K = 0 a batch may be over-generated (`gen_batch_size` > B, as in verl): groups of rank B and more start although (I) does
not hold for them, to stand in for groups that will be rejected. The groups left after the assignment are surplus: dropped.
"""


def age(*, step: int, version: int) -> int:
    """Age in steps of a token that `version` sampled and `step` trains. Raises ValueError if the age would be negative."""
    if version > step:
        raise ValueError(f"age: version must be <= step, got version {version} and step {step}")
    return step - version


def in_time(*, rank: int, next_step: int, version: int, train_batch_size: int, max_staleness: int) -> bool:
    """Invariant (I): a group of this rank will be trained at an age <= `max_staleness`, unless a batch skips the group."""
    assert rank >= 0, f"ranks are 0-based, got {rank}"
    return next_step + rank // train_batch_size - version <= max_staleness


def may_start(
    *, rank: int, next_step: int, version: int, train_batch_size: int, max_staleness: int, gen_batch_size: int
) -> bool:
    """The admission gate: may a group of this rank, or of this likely rank, start on a rollout that holds `version`?

    True iff the group is `in_time`; at `max_staleness` 0 also for over-generation: any rank < `gen_batch_size`, if the
    rollout holds the version that `next_step` starts from.
    """
    if in_time(
        rank=rank,
        next_step=next_step,
        version=version,
        train_batch_size=train_batch_size,
        max_staleness=max_staleness,
    ):
        return True
    return max_staleness == 0 and rank < gen_batch_size and next_step <= version
