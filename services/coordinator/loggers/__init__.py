"""The lines of metrics.jsonl for TensorBoard, W&B and MLflow (`run.loggers`)."""
