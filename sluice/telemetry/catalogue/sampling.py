"""Which groups dynamic sampling keeps, and why the other groups are dropped."""

from sluice.telemetry.metric import Metric, entry

SAMPLING: tuple[Metric, ...] = (
    entry(
        "sampling/acceptance",
        "fraction",
        "coordinator",
        "groups kept / groups judged since the last step",
        "> 0.2",
        "look at which of all right and all wrong grows: take harder or easier prompts, raise `rollout.n`, or"
        " set `algorithm.filter_groups.max_num_gen_batches` to stop instead of burning samples",
    ),
    entry(
        "sampling/all_right_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was right",
        "< 0.7",
        "the data is learnt: harder prompts, or end the run",
    ),
    entry(
        "sampling/all_wrong_fraction",
        "fraction",
        "coordinator",
        "groups dropped because every sample was wrong",
        "< 0.7",
        "easier prompts or more samples a group (`rollout.n`); at the very start check the grader and the template",
    ),
    entry(
        "sampling/gen_batches",
        "generation batches",
        "coordinator",
        "verdicts since the last assignment / gen_batch_size",
        "1 to 3",
        "above 3 generation is the bottleneck: more rollouts, a larger `data.gen_batch_size`, or data with more signal",
    ),
    entry(
        "sampling/unique_fraction",
        "fraction",
        "coordinator",
        "distinct completions / completions within a group",
        "> 0.5",
        "near 0 in the first steps: seeds or temperature are wrong; falling with `loss/entropy_nats`: the policy "
        "collapses, raise `algorithm.clip_ratio_high`",
    ),
)
