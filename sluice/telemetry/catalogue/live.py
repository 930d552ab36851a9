"""The catalogue's live metrics, which the processes' Prometheus endpoints show beside the metrics of the last step."""

from sluice.telemetry.metric import Metric, entry

_SEE_LOG = "the reward service's log names the graders"

LIVE: tuple[Metric, ...] = (
    entry(
        "run/trained_steps",
        "steps",
        "coordinator",
        "steps committed so far",
        "rises",
        "`sluice status` says who waits for whom",
    ),
    entry(
        "run/idle_s",
        "s",
        "coordinator",
        "time since a group started or ended or a step was committed; 0 while the run is not in training",
        "< `coordinator.stall_warning_s`, or twice a step where steps are longer",
        "`sluice status` says who waits for whom, and the coordinator's log since when",
    ),
    entry(
        "learner/waiting_s",
        "s",
        "coordinator",
        "how long the learner has been waiting for its next batch by now; 0 while the learner has a batch",
        "below `step/wall_s`",
        "`sluice status` says what the batch waits for: groups with signal (`sampling/gen_batches`), rollouts, graders",
    ),
    entry(
        "staleness/bound_steps",
        "steps",
        "coordinator",
        "the age that no trained token exceeds",
        "`coordinator.max_staleness`",
        "compare `staleness/age_mean_steps`",
    ),
    entry(
        "fleet/rollouts_ready",
        "services",
        "coordinator",
        "rollouts that take groups",
        "as many as were started",
        "see `fleet/rollouts_quarantined` and `fleet/services_lost`; a new rollout first loads its model and gets weights",
    ),
    entry(
        "fleet/rollouts_quarantined",
        "services",
        "coordinator",
        "rollouts that get no groups because a weight push failed or the rollout's probe disagreed",
        "0",
        "`sluice status` has the reason; the coordinator pushes again; end and start a rollout that stays quarantined",
    ),
    entry(
        "weights/rollouts_without_delta",
        "services",
        "coordinator",
        "rollouts whose last 5 versions travelled whole, while another rollout got a delta",
        "0",
        "the coordinator's log has `weight_push_failed` with the reason; a rollout of an older release takes no deltas",
    ),
    entry(
        "fleet/rewards_ready",
        "services",
        "coordinator",
        "reward services that take groups",
        "as many as were started",
        "none ready: nothing is admitted; see the logs of the reward services",
    ),
    entry(
        "fleet/services_lost",
        "services",
        "coordinator",
        "services that fell silent within the last ten minutes and have not come back",
        "0, but after scaling down",
        "see the log of the lost service, or the kernel's (out of memory); a launcher or an orchestrator starts the "
        "service again",
    ),
    entry(
        "disk/free_bytes",
        "bytes",
        "coordinator",
        "space left for the run directory",
        "room for several checkpoints",
        "lower `learner.keep_checkpoints`, remove exports, or move the run to a larger disk and resume it",
    ),
    entry(
        "disk/free_fraction",
        "fraction",
        "coordinator",
        "`disk/free_bytes` as a share of the disk",
        "> 0.1",
        "as for `disk/free_bytes`",
    ),
    entry(
        "logger/dropped_lines",
        "lines",
        "coordinator",
        "lines that the writers of `run.loggers` did not take because a writer was too slow or failed",
        "0",
        "the coordinator's log names the writer and the error; metrics.jsonl has every line",
    ),
    entry(
        "traces/dropped_records",
        "records",
        "every service",
        "groups, calls, steps and pushes whose spans were not written (`telemetry.traces`), since the process started",
        "0",
        "the service's log says `traces_dropped` with the reason: a collector that is away, a full disk; the run goes on",
    ),
    entry(
        "rollout/running_samples",
        "samples",
        "rollout",
        "samples running or waiting in the engine",
        "near `rollout/limit_samples`, never 0 for long",
        "0 while other rollouts are busy: this rollout is quarantined or syncing; all at 0: admission waits, and "
        "`sluice status` says for what",
    ),
    entry(
        "rollout/limit_samples",
        "samples",
        "rollout",
        "samples that the engine runs at once at most, the largest number since the last heartbeat: `rollout.max_num_seqs`, or "
        "what `auto` makes of the KV cache",
        "moves with the lengths of completions, by a factor of two within a step",
        "near 1 for long: one sample fills the cache, raise `rollout.kv_cache_bytes` or `rollout.tensor_parallel_size`; at the "
        "bound of `auto` with a low `rollout/kv_use`: fewer rollouts would do",
    ),
    entry(
        "rollout/version",
        "version",
        "rollout",
        "number of the weights in use; -1 before any",
        "at most a step or two behind `run/trained_steps`",
        "further behind: compare `weights/push_ms`; `sluice status` has the state of the rollout",
    ),
    entry(
        "rollout/stall_ms",
        "ms",
        "rollout",
        "time without generation at the newest push",
        "as for `weights/stall_ms`",
        "as for `weights/stall_ms`",
    ),
    entry(
        "rollout/generated_tokens",
        "tokens",
        "rollout",
        "completion tokens since the process started",
        "rises steadily",
        "see `rollout/running_samples`",
        kind="counter",
    ),
    entry(
        "rollout/preempted_samples",
        "samples",
        "rollout",
        "samples put back since the process started because the KV cache was full",
        "does not rise",
        "as for `rollout/preemptions`",
        kind="counter",
    ),
    *(
        entry(
            f"reward/{status}",
            "samples",
            "reward",
            f"samples whose grading ended as {status}, since the process started",
            healthy,
            action,
            kind="counter",
        )
        for status, healthy, action in (
            ("ok", "rises", "none rises: see `fleet/rewards_ready`"),
            ("unparsed", "a small share", "see `reward/unparsed_fraction`"),
            ("timeout", "does not rise", f"{_SEE_LOG}; see `reward/timeout_fraction`"),
            ("error", "does not rise", f"{_SEE_LOG}; see `reward/error_fraction`"),
        )
    ),
    *(
        entry(
            f"rpc/refused_{reason}",
            "calls",
            "every service",
            f"calls refused because {why}, since the process started",
            "does not rise",
            "the service's log says `call_refused` with the caller's address and the method; see docs/security.md",
            kind="counter",
        )
        for reason, why in (
            ("unauthenticated", "the caller showed no valid credentials"),
            ("denied", "the caller's role may not call the method"),
            ("paced", "the caller's role and machine call more often than `network.max_calls_per_s`"),
            ("malformed", "the request is no message of the method"),
            ("slow", "the request took too long to arrive, or the answer to be read"),
        )
    ),
)
