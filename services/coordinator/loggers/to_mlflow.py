"""MLflow: one run of the experiment `run.name`, at the server or folder that MLFLOW_TRACKING_URI names."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

from services.coordinator.loggers.line import Line

RUN_TAG = "sluice.run_id"

_PARAMS_A_CALL = 100
"""MLflow's own limit."""


class MlflowLogger:
    """The MLflow run with this run's id as a tag, made unless such a run exists."""

    def __init__(self, *, experiment: str, run_id: str, settings: Mapping[str, Any]) -> None:
        self._entities: Any = importlib.import_module("mlflow.entities")
        client: Any = importlib.import_module("mlflow").MlflowClient()
        self._client = client
        known = client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else client.create_experiment(experiment)
        found = client.search_runs([place], filter_string=f"tags.`{RUN_TAG}` = '{run_id}'", max_results=1)
        if found:
            self._id = found[0].info.run_id
            client.update_run(self._id, status="RUNNING")
            return
        self._id = client.create_run(place, run_name=run_id, tags={RUN_TAG: run_id}).info.run_id
        params = [self._entities.Param(name, str(value)) for name, value in _flat(settings)]
        for start in range(0, len(params), _PARAMS_A_CALL):
            client.log_batch(self._id, params=params[start : start + _PARAMS_A_CALL])

    def write(self, line: Line) -> None:
        """Sends one line in one call."""
        at_ms = int(line.time_s * 1e3)
        metrics = [self._entities.Metric(name, value, at_ms, line.trained_steps) for name, value in line.values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        """Ends the client's work; a later coordinator opens the same MLflow run again."""
        self._client.set_terminated(self._id)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
