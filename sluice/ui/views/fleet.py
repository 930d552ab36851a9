"""Who does what now, who waits for whom, where the weights travel, and what has happened; actions for the operator."""

import time
from collections.abc import Mapping, Sequence
from functools import partial

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

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
LONG_S = 30.0
"""A wait of so long is marked."""

_KINDS = {"READY": "good", "SYNCING": "info", "REGISTERED": "", "DRAINING": "warn", "QUARANTINED": "bad", "LOST": "bad"}
_UNITS = {
    pb.SERVICE_ROLE_ROLLOUT: "samples",
    pb.SERVICE_ROLE_REWARD: "groups",
    pb.SERVICE_ROLE_ENVIRONMENT: "episodes",
}
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
    since, cells = _Texts(), _Texts()

    def refresh() -> None:
        status = live.status
        if status is None:
            _once(
                services, seen, "services", f"No answer from {live.address} yet. {live.problem}", lambda: _nothing(live)
            )
            return
        found = sorted(status.waits, key=lambda wait: -wait.since_s)
        loud = [one.since_s > LONG_S for one in found]
        _once(waits, seen, "waits", [(one.who, one.why) for one in found] + loud, lambda: _waits(status, found, since))
        since.say([(f", since {duration(one.since_s)}",) for one in found])
        rows = [_cells(one, found) for one in status.services]
        _once(services, seen, "services", [(row[0], row[2]) for row in rows], lambda: _services(rows, cells))
        cells.say(rows)
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


class _Texts:
    """Texts that change while what surrounds them stays, so that a text can be selected and copied meanwhile."""

    def __init__(self) -> None:
        self._shown: list[dict[int, TextElement]] = []

    def begin(self, rows: int) -> None:
        """The surroundings are drawn anew."""
        self._shown = [{} for _ in range(rows)]

    def add(self, row: int, column: int, element: TextElement) -> None:
        self._shown[row][column] = element

    def say(self, rows: Sequence[Sequence[str]]) -> None:
        """What every text is now."""
        for elements, row in zip(self._shown, rows, strict=True):
            for column, element in elements.items():
                if element.text != row[column]:
                    element.text = row[column]


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


def _waits(status: Status, found: Sequence[pb.Wait], since: _Texts) -> None:
    since.begin(len(found))
    if not found:
        over = RunState(status.state).final
        said("div", "The run has ended." if over else "Nobody waits for longer than the work takes.", "soft")
    for place, one in enumerate(found):
        with box(classes="note-line warn" if one.since_s > LONG_S else "note-line").style("margin-bottom: 6px"):
            said("b", one.who)
            said("span", f" {short(one.why, most=400)}")
            since.add(place, 0, said("span", "", "soft num nowrap"))


def _cells(one: pb.ServiceStatus, waits: Sequence[pb.Wait] = ()) -> tuple[str, ...]:
    state = pb.ServiceState.Name(one.state).removeprefix("SERVICE_STATE_")
    role = pb.ServiceRole.Name(one.role).removeprefix("SERVICE_ROLE_").lower()
    push = _push(one) if one.push_ms else ABSENT
    age = number(one.heartbeat_age_s, 0)
    version = f"{one.version.lineage}{one.version.number}" if one.version.lineage else ABSENT
    where = one.node or ABSENT, _gpus(one), one.address
    return one.service_id, role, state, version, _work(one, waits), push, f"{age} s ago", *where


def _work(one: pb.ServiceStatus, waits: Sequence[pb.Wait]) -> str:
    """What the service does now: its load, or what the learner trains or waits for, without the setting that bounds it."""
    if one.role != pb.SERVICE_ROLE_LEARNER:
        return f"{one.running:,} of {one.capacity:,} {_UNITS.get(one.role, '')}".strip() if one.capacity else ABSENT
    for wait in waits:
        if wait.who == "learner":
            return short(wait.why.partition(" (")[0], most=60)
        if wait.who.startswith("batch "):
            return f"waits for {wait.who}"
    return ABSENT


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
    took = f"{number(one.push_ms)} ms" if one.push_ms < 1000 else f"{number(one.push_ms / 1000)} s"
    return f"{took}, {one.encoding or 'files'}, {gigabytes(one.sent_bytes)}"


_HEAD = "service", "role", "state", "version", "does now", "newest push", "heartbeat", "node", "GPUs", "address"
_STATE = 2
_LONG = (5, 8)
"""Columns that may need more than a line."""


def _services(rows: Sequence[Sequence[str]], texts: _Texts) -> None:
    texts.begin(len(rows))
    if not rows:
        said(
            "div",
            "No service has registered yet; rollouts, rewards and the learner do so when they have loaded.",
            "soft",
        )
        return

    def cell(row: int, column: int) -> None:
        text = rows[row][column]
        if column == _STATE:
            chip(text.lower(), _KINDS.get(text, ""))
        else:
            texts.add(row, column, said("span", text, "" if column in _LONG else "nowrap"))

    plain_table(
        _HEAD,
        [[partial(cell, row, column) for column in range(len(_HEAD))] for row in range(len(rows))],
        is_wide=True,
    )


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
