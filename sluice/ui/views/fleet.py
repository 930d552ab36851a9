"""Who does what now, who waits for whom, where the weights travel, and what has happened; actions for the operator."""

import time
from collections.abc import Mapping

from nicegui import ui

from sluice.client import Event, RunState, Status
from sluice.report.figures import ABSENT, duration, number
from sluice.sizing.memory_parts import gigabytes
from sluice.ui.actions import buttons
from sluice.ui.live import Live
from sluice.ui.page import Page
from sluice.ui.parts import box, chip, empty, panel, plain_table, said
from sluice.ui.shown_text import short
from sluice.v1 import coordinator_pb2 as pb

REFRESH_S = 1.0
EVENTS_SHOWN = 120

_KINDS = {"READY": "good", "SYNCING": "info", "REGISTERED": "", "DRAINING": "warn", "QUARANTINED": "bad", "LOST": "bad"}
_LOUD = {
    "service_lost": "bad",
    "service_quarantined": "bad",
    "batch_set_aside": "bad",
    "stalled": "warn",
    "starving": "warn",
    "warning": "warn",
    "store_repaired": "warn",
    "rolled_back": "warn",
    "service_ready": "good",
    "run_state": "info",
    "evaluated": "info",
}


async def show(page: Page) -> None:
    """The view."""
    live = page.run.live
    if live is None:
        empty(
            "This run is not up",
            "Services, waits and events are a running run's. Start `sluice ui` with --coordinator HOST:PORT, or with the "
            "directory of a run that is up; what this run's services did is in its logs/.",
        )
        return
    if page.role == "operator":
        with panel("Actions", note="each asks before it is done"):
            buttons(live)
    with box(classes="two"):
        with panel("Who waits for what"):
            waits = box().style("min-height: 90px")
        with panel("How the weights travel", note="from whom each rollout had its newest version"):
            chains = box().style("min-height: 90px")
    with panel("Services"):
        services = box().style("min-height: 160px")
    with panel("Events", note="newest first"):
        events = box(classes="events").style("min-height: 160px")
    seen: dict[str, object] = {}

    def refresh() -> None:
        status = live.status
        if status is None:
            _once(
                services, seen, "services", f"No answer from {live.address} yet. {live.problem}", lambda: _nothing(live)
            )
            return
        _once(
            waits,
            seen,
            "waits",
            [(one.who, one.why, round(one.since_s)) for one in status.waits],
            lambda: _waits(status),
        )
        _once(services, seen, "services", [_cells(one) for one in status.services], lambda: _services(status))
        _once(
            chains,
            seen,
            "chains",
            [(one.service_id, one.source, one.push_ms) for one in status.services],
            lambda: _chains(status),
        )
        newest = (live.events[-1].process, live.events[-1].sequence) if live.events else None
        _once(events, seen, "events", newest, lambda: _events(live))

    refresh()
    ui.timer(REFRESH_S, refresh)


def _once(place: ui.element, seen: dict[str, object], name: str, content: object, draw: object) -> None:
    """Draws a part again when what it shows has changed."""
    if name in seen and seen[name] == content:
        return
    seen[name] = content
    place.clear()
    with place:
        draw()  # type: ignore[operator]


def _nothing(live: Live) -> None:
    said("div", f"The coordinator at {live.address} has not answered yet.", "soft")
    if live.problem:
        said("div", short(live.problem, most=400), "note-line warn")


def _waits(status: Status) -> None:
    if not status.waits:
        over = RunState(status.state).final
        said("div", "The run has ended." if over else "Nobody waits for longer than the work takes.", "soft")
    for one in sorted(status.waits, key=lambda wait: -wait.since_s):
        with box(classes="note-line warn" if one.since_s > 30 else "note-line").style("margin-bottom: 6px"):
            said("b", one.who)
            said("span", f" {short(one.why, most=400)}")
            said("span", f", since {duration(one.since_s)}", "soft num nowrap")


def _cells(one: pb.ServiceStatus) -> tuple[str, ...]:
    state = pb.ServiceState.Name(one.state).removeprefix("SERVICE_STATE_")
    role = pb.ServiceRole.Name(one.role).removeprefix("SERVICE_ROLE_").lower()
    work = f"{one.running} of {one.capacity}" if one.capacity else ABSENT
    push = (
        f"{number(one.push_ms)} ms, {one.encoding or 'files'}, {gigabytes(one.sent_bytes)}" if one.push_ms else ABSENT
    )
    age = number(one.heartbeat_age_s, 0)
    version = f"{one.version.lineage}{one.version.number}" if one.version.lineage else ABSENT
    where = one.node or ABSENT, _gpus(one), one.address
    return one.service_id, role, state, version, work, push, f"{age} s ago", *where


def _gpus(one: pb.ServiceStatus) -> str:
    """What the service computes on, as it has told."""
    if not one.HasField("gpus"):
        return ABSENT
    if not one.gpus.count:
        return "cpu"
    text = f"{one.gpus.count} × {short(one.gpus.name, most=60)}, {gigabytes(one.gpus.memory_bytes)} each"
    return f"{text}, {short(one.device, most=12)}" if one.device.startswith("GPU-") else text


def _push(one: pb.ServiceStatus) -> str:
    """The newest push in words."""
    return f"{number(one.push_ms)} ms, {one.encoding or 'files'}, {gigabytes(one.sent_bytes)}"


def _services(status: Status) -> None:
    if not status.services:
        said(
            "div",
            "No service has registered yet; rollouts, rewards and the learner do so when they have loaded.",
            "soft",
        )
        return
    rows = []
    for one in status.services:
        name, role, state, version, work, push, age, node, gpus, address = _cells(one)
        kind = _KINDS.get(state, "")
        rows.append(
            (
                name,
                role,
                lambda state=state, kind=kind: chip(state.lower(), kind),
                version,
                work,
                push,
                age,
                node,
                gpus,
                address,
            )
        )
    head = (
        "service",
        "role",
        "state",
        "version",
        "work: samples or groups",
        "newest push",
        "heartbeat",
        "node",
        "GPUs",
        "address",
    )
    plain_table(head, rows, right=(3, 4, 6))


def _chains(status: Status) -> None:
    """The tree of sources, the learner at its root."""
    below: dict[str, list[pb.ServiceStatus]] = {}
    for one in status.services:
        if one.source:
            below.setdefault(one.source, []).append(one)
    if not below:
        said("div", "No weights have been pushed yet.", "soft")
        return
    known = {one.service_id for one in status.services if one.source}
    for root in sorted(source for source in below if source not in known):
        _branch(root, below, depth=0, note="")


def _branch(name: str, below: Mapping[str, list[pb.ServiceStatus]], *, depth: int, note: str) -> None:
    with box(classes="tree" if depth else ""):
        said("span", name)
        said("span", f" {note}", "soft small num")
        for one in below.get(name, ()) if depth < 20 else ():
            how = f"{one.version.lineage}{one.version.number}, {_push(one)}"
            _branch(one.service_id, below, depth=depth + 1, note=how)


def _events(live: Live) -> None:
    if not live.events:
        said("div", "No event yet.", "soft")
        return
    newest: list[Event] = list(live.events)[-EVENTS_SHOWN:][::-1]
    plain_table(
        ("at", "what", ""),
        [
            (
                time.strftime("%H:%M:%S", time.localtime(one.time_s)),
                lambda one=one: chip(one.kind.replace("_", " "), _LOUD.get(one.kind, "")),
                short(one.message, most=400),
            )
            for one in newest
        ],
    )
