"""The columns of the files in RUN/evaluations: a row for every prompt of an evaluation (docs/evaluation.md)."""

import pyarrow as pa

EVALUATIONS_FOLDER = "evaluations"

EVALUATION_SCHEMA = pa.schema(
    [
        ("set", pa.string()),
        ("lineage", pa.string()),
        ("version", pa.int64()),
        ("prompt", pa.int32()),
        ("prompt_id", pa.string()),
        ("data_source", pa.string()),
        ("n", pa.int32()),
        ("graded", pa.int32()),
        ("ungradable", pa.int32()),
        ("correct", pa.int32()),
        ("accuracy", pa.float64()),
        ("majority_answer", pa.string()),
        ("majority_right", pa.bool_()),
        ("greedy_right", pa.bool_()),
        ("mean_response_tokens", pa.float64()),
        ("truncated", pa.int32()),
    ]
)
"""`set` is empty for the default set; what cannot be said is null."""
