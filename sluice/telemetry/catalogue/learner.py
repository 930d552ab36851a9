"""Where the learner's time goes, and how much it trains."""

from sluice.telemetry.metric import Metric, entry

LEARNER: tuple[Metric, ...] = (
    entry(
        "learner/train_s",
        "s",
        "learner",
        "time of forward, backward and updates",
        "steady",
        "more ranks, or a larger `learner.max_tokens_per_micro_batch` while memory allows",
    ),
    entry(
        "learner/wait_s",
        "s",
        "learner",
        "time the learner waited for its batch",
        "< 10 % of step/wall_s",
        "generation is the bottleneck: more rollouts, a higher `coordinator.max_staleness`, or see "
        "`sampling/acceptance`",
    ),
    entry(
        "learner/publish_s",
        "s",
        "learner",
        "how long publishing new weights keeps the learner from its next step: gathering, copying, and waiting until the "
        "version before is booked; digest and sending go on beside the next step",
        "< 10 % of learner/train_s",
        "compare `learner/gather_ms` and `learner/pack_ms`, which grow with the model: take fewer, larger steps; more than "
        "both: `learner/digest_ms` or the coordinator takes longer than a step",
    ),
    entry(
        "learner/gather_ms",
        "ms",
        "learner",
        "of publishing: waiting for tensors from the other ranks (rank 0)",
        "most of learner/publish_s with several ranks, 0 with one",
        "the ranks' network is slow, or a rank comes late",
    ),
    entry(
        "learner/pack_ms",
        "ms",
        "learner",
        "of publishing: checking, converting and copying tensors into the snapshot (rank 0)",
        "a few ms for each 10 MB",
        "on a CPU raise `learner.threads`, which convert the tensors; or another process keeps the memory busy",
    ),
    entry(
        "learner/digest_ms",
        "ms",
        "learner",
        "digests of the snapshot and of its buckets, beside the next step (rank 0)",
        "about 1 ms for each 1 MB",
        "another process uses the core; only longer than learner/train_s it delays a step",
    ),
    entry(
        "learner/tokens_per_s",
        "tokens/s",
        "learner",
        "trained tokens (prompt included) / train_s",
        "steady",
        "a fall at equal lengths: another process on the machine, or micro-batches too small "
        "(`learner.max_tokens_per_micro_batch`)",
    ),
    entry(
        "learner/mfu",
        "fraction",
        "learner",
        "model FLOPs of the step (docs/learner.md) / train_s / peak FLOP/s of all ranks' devices; left out where the peak is "
        "not known: set `learner.peak_flops`",
        "0.1 to 0.4 on GPUs for models of some billions, lower for small models and short sequences",
        "a larger `learner.max_tokens_per_micro_batch`; fewer ranks; compare `learner/hfu`, and `learner/tokens_per_s` with "
        "other runs of the model",
    ),
    entry(
        "learner/hfu",
        "fraction",
        "learner",
        "as `learner/mfu`, with what `learner.gradient_checkpointing` or `algorithm.proximal` compute a second time; left "
        "out where nothing is",
        "above `learner/mfu`",
        "the difference is what recomputation costs: without `learner.gradient_checkpointing` where memory permits",
    ),
    entry(
        "learner/peak_memory_bytes",
        "bytes",
        "learner",
        "most memory that a rank held while it trained the step: on CUDA bytes of tensors, on a CPU the process's resident set",
        "some GB below the device's memory",
        "near the limit: lower `learner.max_tokens_per_micro_batch` or set `learner.gradient_checkpointing`; "
        "`sluice config check` says what the memory is made of",
    ),
    entry(
        "learner/trained_tokens",
        "tokens",
        "learner",
        "completion tokens in the loss of this step",
        "follows response/length_mean_tokens",
        "0 means that everything was masked: check `algorithm.overlong_filtering`",
    ),
    entry(
        "learner/prompt_tokens_saved",
        "tokens",
        "learner",
        "prompt tokens that this step did not compute again, because the samples of a group share the group's prompt",
        "(n - 1) x prompt tokens x groups, a little less where a group is cut",
        "0: `learner.share_prompts` is never, the model does not allow it (`model_proved` in the learner's log), prompts are "
        "short beside answers, or the forms were found to differ (`prompts_not_shared` in the log)",
    ),
    entry(
        "learner/updates",
        "updates",
        "learner",
        "optimizer updates of this step",
        "ceil(train_batch_size / mini_batch_size)",
        "fewer: see `learner/skipped_updates`",
    ),
    entry(
        "learner/skipped_updates",
        "updates",
        "learner",
        "updates skipped because loss or gradient was not finite",
        "0",
        "lower `learner.lr`; the run stops after `learner.max_skipped_updates` in a row; look for a reward "
        "that is not finite",
    ),
)
