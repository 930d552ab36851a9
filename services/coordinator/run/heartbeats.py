"""Declares silent services lost, and ends the pauses of services whose answers failed. Waits only for its own interval."""

from services.coordinator.state.run_context import RunContext


async def sweep_forever(run: RunContext) -> None:
    """Looks once an interval, until cancelled; time in which this process did not run does not count as silence."""
    settings, slept_s = run.config.coordinator, run.clock.now()
    while True:
        await run.clock.sleep(settings.heartbeat_interval_s)
        before_s, slept_s = slept_s, run.clock.now()
        if slept_s - before_s > settings.heartbeat_interval_s + settings.heartbeat_timeout_s / 2:
            run.fleet.excuse(now_s=slept_s)
        run.fleet.end_pauses(now_s=slept_s)
        for member in run.fleet.sweep(now_s=run.clock.now(), timeout_s=settings.heartbeat_timeout_s):
            kind, text = "service_lost", f"{member.service_id}: no heartbeat for {settings.heartbeat_timeout_s:.0f} s"
            if member.leaving:  # as it had said, so that nobody looks for a fault
                kind, text = "service_left", f"{member.service_id} has left"
            run.events.emit(kind, text, labels={"service_id": member.service_id})
