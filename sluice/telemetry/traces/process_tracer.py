"""Opens a process's tracer by `telemetry.traces`."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Final

import sluice
from sluice.config.schema import Config
from sluice.config.traces import FILE, check_traces, collector_of
from sluice.telemetry.prometheus import Exporter
from sluice.telemetry.traces.feed import SpanFeed, SpanWriter
from sluice.telemetry.traces.span import Value
from sluice.telemetry.traces.tracer import OFF, Tracer

FOLDER: Final = "traces"
"""Within the run directory."""

CLOSE_WITHIN_S: Final = 3.0
"""Limit for writing what waits at a process's end; below every service's grace time."""

_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9._-]")


def open_tracer(
    config: Config, *, service: str, instance: str, run: str, run_dir: str, exporter: Exporter | None = None
) -> Tracer:
    """The tracer of one process, which is to be closed. `exporter` shows how much it drops.

    `instance` is the process's name, or empty for one that has none before it registers. `run` is a name that no other run
    has; `run_dir` is the run directory as the coordinator knows it. Raises ConfigError where a collector is asked for and the
    packages for it are not installed.
    """
    where, tracer = config.telemetry.traces, OFF
    if exporter is not None:  # with traces off too: rules and dashboards ask for the metric
        exporter.gauge("traces/dropped_records").labels(service).set_function(lambda: tracer.dropped)
    if where is None:
        return tracer
    check_traces(config)
    instance = instance or f"{service}-{socket.gethostname()}-{os.getpid()}"
    resource = _resource(config, service=service, instance=instance, run=run)
    tracer = Tracer(
        SpanFeed(_writer(config, where, instance, run_dir, resource)), run=run, ratio=config.telemetry.trace_sample
    )
    return tracer


def _writer(
    config: Config, where: str, instance: str, run_dir: str, resource: dict[str, Value]
) -> Callable[[], SpanWriter]:
    version = sluice.__version__

    def to_file() -> SpanWriter:
        from sluice.telemetry.traces.otlp_file import OtlpFile

        if not run_dir or not Path(run_dir).is_dir():
            raise FileNotFoundError(
                f"telemetry.traces: file: the run directory {run_dir or '(not known)'} is not on this machine; send spans to a "
                "collector instead, otlp://HOST:PORT"
            )
        path = Path(run_dir) / FOLDER / f"{_NOT_IN_A_NAME.sub('_', instance)}.jsonl"
        return OtlpFile(path, most_bytes=config.run.file_max_bytes, resource=resource, version=version)

    def to_collector() -> SpanWriter:
        from sluice.telemetry.traces.otlp import to_collector

        return to_collector(collector_of(where), resource=resource, version=version)

    return to_file if where == FILE else to_collector


def _resource(config: Config, *, service: str, instance: str, run: str) -> dict[str, Value]:
    """Who the spans are of: OpenTelemetry's names, and those of the proposal for `rl.*`."""
    return {
        "service.name": f"sluice-{service}",
        "service.instance.id": instance,
        "service.version": sluice.__version__,
        "host.name": socket.gethostname(),
        "rl.system": "sluice",
        "rl.run.id": run,
        "rl.algorithm": "dapo",
        "rl.model.name": Path(config.model.path).name,
    }
