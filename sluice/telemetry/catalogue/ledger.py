"""Both sides of the conservation law of groups and tokens, term by term."""

from sluice.telemetry.metric import Metric, entry

_TERMS = (
    ("live", "pending, in flight, scored, queued or assigned", "a few batches", "see `queue/in_flight_groups`"),
    ("trained", "whose step was committed", "rises by a batch a step", "see `step/wall_s`"),
    ("filtered", "dropped without signal, by dynamic sampling", "below trained", "see `sampling/acceptance`"),
    ("stale", "dropped as too old to be trained", "near 0", "fewer rollouts, or a larger `coordinator.max_staleness`"),
    (
        "surplus",
        "generated ahead of the verdicts and not needed",
        "0 unless max_staleness is 0 or refill_confidence below 1",
        "lower `data.gen_batch_size` in a synchronous schedule, else raise `coordinator.refill_confidence`",
    ),
    ("rollback", "dropped because weights were rolled back", "0", "expected after a rollback only"),
    ("failed", "that could not be generated or graded", "near 0", "`sluice ledger` splits them by reason"),
    ("abandoned", "given up when the run ended", "0 while the run goes on", "expected after a stop only"),
)
"""(term, which groups, healthy range, action). Counted from the start of the run to just before the step is booked."""

_SIDES = (
    ("groups", "admitted", "groups admitted"),
    ("tokens", "received", "completion tokens received from rollouts"),
)
"""(unit, name, meaning) of the two sides."""

LEDGER: tuple[Metric, ...] = (
    entry(
        "ledger/closed",
        "0 or 1",
        "coordinator",
        "whether both sides agree, in groups and in tokens",
        "1",
        "keep the run directory and report the step: a group or a token is in no term, or in two terms",
    ),
    *(
        entry(
            f"ledger/{name}_{unit}",
            unit,
            "coordinator",
            f"{what}: the sum of the terms",
            "rises",
            "see `step/wall_s`",
        )
        for unit, name, what in _SIDES
    ),
    *(
        entry(f"ledger/{term}_{unit}", unit, "coordinator", f"{of} {whose}", healthy, action)
        for unit, of in (("groups", "groups"), ("tokens", "completion tokens of groups"))
        for term, whose, healthy, action in _TERMS
    ),
    entry(
        "ledger/lost_tokens",
        "tokens",
        "coordinator",
        "completion tokens received and thrown away: too old after a failed attempt, or refused",
        "near 0",
        "rollouts end during attempts, or return samples that do not fit the request; `sluice explain` shows the "
        "attempts of a group",
    ),
)
