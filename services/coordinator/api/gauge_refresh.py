"""Keeps the Prometheus endpoint current, until cancelled."""

import asyncio
import contextlib

from services.coordinator.api.gauges import disk_gauges, gauges, targets
from services.coordinator.api.run_parts import RunParts
from services.coordinator.groups.step_metrics import queue_metrics
from services.coordinator.state.ledger import count, ledger_metrics
from sluice.errors import Unavailable
from sluice.telemetry.prometheus import Exporter

DISK_EVERY_S = 15.0


async def export_run(parts: RunParts, exporter: Exporter) -> None:
    """Refreshes the gauges and the list of all services' endpoints, until cancelled."""
    run = parts.run
    while True:
        exporter.targets = targets(run.fleet, run_id=run.run_id)
        exporter.set(run.progress.metrics | queue_metrics(run.board) | gauges(parts))
        with contextlib.suppress(Unavailable):  # without an answer of Redis the ledger's gauges keep their values
            exporter.set(ledger_metrics(count(await parts.store.counters(), run.board)))
        await run.board.changed.wait(1.0)
        await run.clock.sleep(0.5)


async def export_disk(parts: RunParts, exporter: Exporter) -> None:
    """Refreshes the disk's gauges, apart from the other gauges, which go on while a network disk does not answer."""
    while True:
        exporter.set(await asyncio.to_thread(disk_gauges, parts.records.files.run_dir))
        await parts.run.clock.sleep(DISK_EVERY_S)
