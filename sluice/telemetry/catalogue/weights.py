"""What a weight push costs."""

from sluice.telemetry.metric import Metric, entry

WEIGHTS: tuple[Metric, ...] = (
    entry(
        "weights/push_ms",
        "ms",
        "coordinator",
        "from opening a transfer to `applied`, slowest rollout",
        "< 10 % of step/wall_s",
        "compare `weights/receive_ms`: if receiving is most of the push, raise `weights.bucket_bytes` or use a faster "
        "network; otherwise a rollout is slow to apply",
    ),
    entry(
        "weights/receive_ms",
        "ms",
        "coordinator",
        "receiving the bytes in the background, slowest rollout",
        "< 10 % of step/wall_s",
        "check which network interface the bytes take; raise `weights.bucket_bytes`",
    ),
    entry(
        "weights/stall_ms",
        "ms",
        "coordinator",
        "time without generation while weights were applied, slowest rollout",
        "milliseconds; < 1 % of step/wall_s",
        "with `weights.inflight: recompute` the stall includes the prompts computed again; use `keep`",
    ),
    entry(
        "weights/relay_links",
        "links",
        "coordinator",
        "links between the learner and the rollout that is furthest away; 1 while the learner sends to each itself",
        "one a machine, and one a rollout of the largest machine",
        "fewer, larger machines, or `weights.relay: off` for a small fleet on a fast network",
    ),
    entry(
        "weights/source_changes",
        "changes",
        "coordinator",
        "rollouts that got another source while a version was on its way",
        "0; some when a rollout dies",
        "`weights_source_changed` in the coordinator's log says whose link failed and why",
    ),
    entry(
        "weights/sent_bytes",
        "bytes",
        "coordinator",
        "bytes of weights that travelled to rollouts since the last step, all pushes together",
        "with `weights.encoding: auto` and small steps a few hundredths of `weights/dense_bytes`",
        "compare `weights/deltas`; the learner's log says `delta_does_not_pay` where too much of a version changes in a step",
    ),
    entry(
        "weights/dense_bytes",
        "bytes",
        "coordinator",
        "bytes that the same pushes would have taken whole",
        "rollouts x bytes of the model",
        "compare `weights/sent_bytes`",
    ),
    entry(
        "weights/deltas",
        "pushes",
        "coordinator",
        "pushes since the last step that sent what had changed, not the whole version",
        "rollouts; fewer after joins, restarts and failures",
        "see `weights/rollouts_without_delta`",
    ),
)
