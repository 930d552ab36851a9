"""The columns of a ledger row, which the coordinator writes and readers rely on. Meanings: docs/ledger.md."""

import pyarrow as pa

_ATTEMPT = pa.struct(
    [
        ("number", pa.int32()),
        ("rollout", pa.string()),
        ("version", pa.int64()),
        ("asked", pa.int32()),
        ("started_s", pa.float64()),
        ("ended_s", pa.float64()),
        ("samples", pa.int32()),
        ("tokens", pa.int64()),
        ("fault", pa.string()),
    ]
)
_COMPLETION = pa.struct(
    [
        ("sample", pa.int32()),
        ("rollout", pa.string()),
        ("tokens", pa.int32()),
        ("finish_reason", pa.string()),
        ("versions", pa.string()),
        ("oldest_version", pa.int64()),
        ("status", pa.string()),
        ("raw_score", pa.float64()),
        ("acc", pa.float64()),
        ("extracted", pa.string()),
        ("overlong_penalty", pa.float64()),
        ("shaped_reward", pa.float64()),
        ("grader", pa.string()),
        ("detail", pa.string()),
        ("parts", pa.string()),
        ("turns", pa.int32()),
        ("observed_tokens", pa.int32()),
        ("tools", pa.string()),
        ("generated_s", pa.float64()),
        ("environment_s", pa.float64()),
    ]
)
LEDGER_SCHEMA = pa.schema(
    [
        ("group_id", pa.string()),
        ("admission", pa.int64()),
        ("prompt_id", pa.string()),
        ("data_source", pa.string()),
        ("prompt_epoch", pa.int64()),
        ("prompt_row", pa.int64()),
        ("admitted_s", pa.float64()),
        ("admitted_rank", pa.int64()),
        ("admitted_next_step", pa.int64()),
        ("predicted", pa.float64()),
        ("chosen", pa.bool_()),
        ("attempt", pa.int32()),
        ("term", pa.string()),
        ("fault", pa.string()),
        ("step", pa.int64()),
        ("oldest_version", pa.int64()),
        ("samples", pa.int32()),
        ("tokens", pa.int64()),
        ("lost_tokens", pa.int64()),
        ("acc_mean", pa.float64()),
        ("ended_s", pa.float64()),
        ("trace_id", pa.string()),
        ("grading_s", pa.float64()),
        ("graded_s", pa.float64()),
        ("queued_s", pa.float64()),
        ("assigned_s", pa.float64()),
        ("attempts", pa.list_(_ATTEMPT)),
        ("completions", pa.list_(_COMPLETION)),
    ]
)
"""The schema of every file of RUN/ledger; a file that an older version wrote may lack columns."""
