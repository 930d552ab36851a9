"""How groups flow through a step: their age, where groups wait, how long completions are, tokens a second."""

from sluice.telemetry.metric import Metric, entry

FLOW: tuple[Metric, ...] = (
    entry(
        "staleness/age_mean_steps",
        "steps",
        "coordinator",
        "mean over trained groups of the age of their oldest token",
        "<= coordinator.max_staleness",
        "near the bound: the learner is the bottleneck; near 0 while the learner waits: rollouts are; lower "
        "`coordinator.max_staleness` when `mismatch/k3_nats` grows with age",
    ),
    entry(
        "staleness/age_max_steps",
        "steps",
        "coordinator",
        "age of the oldest token trained",
        "<= coordinator.max_staleness, always",
        "above the bound is a bug: keep the run directory and report the step",
    ),
    entry(
        "queue/groups",
        "groups",
        "coordinator",
        "accepted groups waiting for a step",
        "> 0 when the learner is the bottleneck",
        "0 while `learner/wait_s` is large: add rollouts; full all the time: the learner is the bottleneck, "
        "fewer rollouts will do",
    ),
    entry(
        "queue/in_flight_groups",
        "groups",
        "coordinator",
        "groups being generated or scored",
        "near gen_batch_size",
        "far below: no READY rollout, or admission waits for the staleness bound or for room in Redis",
    ),
    entry(
        "response/length_mean_tokens",
        "tokens",
        "coordinator",
        "mean completion length of generated samples",
        "no sudden jumps",
        "a jump up with falling accuracy: rambling, switch on the overlong buffer; a fall to almost nothing: "
        "the reward pays for short answers",
    ),
    entry(
        "response/length_max_tokens",
        "tokens",
        "coordinator",
        "longest completion generated",
        "mostly < data.max_response_length",
        "always at the limit: see `response/truncated_fraction`",
    ),
    entry(
        "response/truncated_fraction",
        "fraction",
        "coordinator",
        "share of generated samples cut at max_response_length",
        "< 0.1",
        "raise `data.max_response_length` or use the overlong buffer; truncated samples count as wrong and "
        "teach shortness",
    ),
    entry(
        "rollout/generated_tokens_per_s",
        "tokens/s",
        "coordinator",
        "completion tokens received from all rollouts per second",
        "steady",
        "a step down: a rollout was lost or quarantined (see the services); a slow decline: responses grow longer",
    ),
    entry(
        "rollout/kv_use",
        "fraction",
        "coordinator",
        "largest share of a KV cache in use during the step, over all rollouts; left out of a step without a heartbeat of a "
        "rollout (`coordinator.heartbeat_interval_s`); on a rollout's endpoint its own, since its last heartbeat",
        "< 0.95",
        "at 1 samples wait or are put back, see `rollout/preemptions`; far below: a larger `rollout.max_num_seqs` or "
        "fewer rollouts would do",
    ),
    entry(
        "rollout/preemptions",
        "samples",
        "coordinator",
        "samples put back during the step because a KV cache was full, over all rollouts; they are computed again",
        "0; with `rollout.max_num_seqs: auto` up to a sixth of the samples",
        "`rollout.max_num_seqs: auto` or a lower number, or raise `rollout.kv_cache_bytes` (without it on CUDA "
        "`rollout.gpu_memory_utilization`) or `rollout.tensor_parallel_size`; `sluice config check` counts how many sequences "
        "fit",
    ),
    entry(
        "step/wall_s",
        "s",
        "coordinator",
        "time from one commit to the next",
        "steady",
        "compare `learner/train_s`, `learner/wait_s` and `learner/publish_s`: the largest names the bottleneck",
    ),
)
