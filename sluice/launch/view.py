"""Shows a live run: a panel that is redrawn on a terminal, plain lines anywhere else.

The caller hands the coordinator's status to `update` about once a second, and every event of WatchEvents to `event`.
Nothing here talks to a network, keeps a clock or waits. Text from outside (names, reasons, messages) is never read as
markup, and its control characters are made visible.
"""

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Protocol, TextIO, cast

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sluice.report.evaluations import by_set, headline, within
from sluice.report.figures import duration, fraction, number, printable, quantity
from sluice.sizing.memory_parts import gigabytes
from sluice.telemetry.full_disk_stream import FullDiskStream
from sluice.v1 import common_pb2
from sluice.v1 import coordinator_pb2 as pb

_STEP_EVENT = "step_trained"
_SHOWN_ELSEWHERE = frozenset({_STEP_EVENT, "evaluated", "weights_pushed", "run_state"})
"""Events that the view does not print: the status tells their content better, or they come with every step."""

_NOTES_KEPT = 4
_SERVICES_SHOWN = 12
_WAITS_SHOWN = 8
_SETS_SHOWN = 4

_WAIT_SHOWN_S = 5.0
"""Shorter waits are normal and are not shown."""

_RUN_STYLES = {
    pb.RUN_STATE_RUNNING: "bold green",
    pb.RUN_STATE_FINISHING: "bold green",
    pb.RUN_STATE_FINISHED: "bold green",
    pb.RUN_STATE_FAILED: "bold red",
    pb.RUN_STATE_STARVED: "bold red",
}
_SERVICE_STYLES = {
    pb.SERVICE_STATE_READY: "green",
    pb.SERVICE_STATE_QUARANTINED: "red",
    pb.SERVICE_STATE_LOST: "red",
}


class View(Protocol):
    """Something that shows a run."""

    def update(self, status: pb.GetStatusResponse) -> None:
        """Takes the newest status, about once a second."""

    def event(self, event: pb.WatchEventsResponse) -> None:
        """Takes one event, in order."""

    def message(self, text: str) -> None:
        """Shows a message of the caller; the message stays on the screen."""

    def close(self) -> None:
        """Ends the view; the last picture stays on the screen."""


def make_view(stream: TextIO, *, plain: bool) -> View:
    """The panel where `stream` is a terminal, unless `plain` is asked for. A file on a full disk gets no lines."""
    patient = cast("TextIO", FullDiskStream(stream))
    return PlainView(patient) if plain or not stream.isatty() else LiveView(Console(file=patient))


class LiveView:
    """A panel redrawn in place with every status."""

    def __init__(self, console: Console) -> None:
        self._live = Live(console=console, auto_refresh=False)
        self._notes: deque[str] = deque(maxlen=_NOTES_KEPT)

    def update(self, status: pb.GetStatusResponse) -> None:
        self._live.start()
        self._live.update(render(status, notes=self._notes), refresh=True)

    def event(self, event: pb.WatchEventsResponse) -> None:
        if event.kind not in _SHOWN_ELSEWHERE:
            at = time.strftime("%H:%M:%S", time.localtime(event.time_s))
            self._notes.append(f"{at}  {event_line(event)}")

    def message(self, text: str) -> None:
        self._live.console.print(Text(printable(text)))

    def close(self) -> None:
        self._live.stop()


class PlainView:
    """One line for every trained step, evaluation and change of state; no escape sequences.

    A step is known from its `step_trained` event (`values["step"]` is the 0-based step, the step's metrics stand beside)
    or, if events are missed, from the status. The first of the two prints the step.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._status = pb.GetStatusResponse()
        self._steps_printed = 0
        self._evaluations_seen: set[bytes] = set()
        self._rollbacks_seen = 0

    def update(self, status: pb.GetStatusResponse) -> None:
        if status.state != self._status.state:
            self._line(f"run {_run_state(status)}" + (f": {status.reason}" if status.reason else ""))
        for made in status.rollbacks[self._rollbacks_seen :]:  # steps given up are printed when trained again
            self._rollbacks_seen += 1
            self._steps_printed = min(self._steps_printed, made.to)
        # A place in the list says nothing: the status of a long run has the first and the newest ones.
        for evaluation in status.evaluations:
            if evaluation.SerializeToString() not in self._evaluations_seen:
                self._line(evaluation_line(evaluation))
        if status.evaluations:
            self._evaluations_seen = {evaluation.SerializeToString() for evaluation in status.evaluations}
        self._status = status
        self._step(status)

    def event(self, event: pb.WatchEventsResponse) -> None:
        if event.kind == _STEP_EVENT and "step" in event.values:
            status = pb.GetStatusResponse()
            status.CopyFrom(self._status)
            status.step = int(event.values["step"]) + 1
            for name, value in event.values.items():
                status.metrics[name] = value
            self._step(status)
        elif event.kind not in _SHOWN_ELSEWHERE:
            self._line(event_line(event))

    def message(self, text: str) -> None:
        self._line(text)

    def close(self) -> None:
        self._stream.flush()

    def _step(self, status: pb.GetStatusResponse) -> None:
        if status.step > self._steps_printed and status.total_steps:
            self._steps_printed = status.step
            self._line(step_line(status))

    def _line(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        line = printable(text.replace("\n", " | ")).encode(encoding, errors="replace").decode(encoding)
        self._stream.write(line + "\n")
        self._stream.flush()


def step_line(status: pb.GetStatusResponse) -> str:
    """Where a run stands, on one line."""
    return "  ".join(
        (
            f"step {status.step}/{status.total_steps}",
            f"acc(held-out) {_change([evaluation.avg_at_n for evaluation in headline(status.evaluations)], arrow='→')}",
            f"pass {fraction(_metric(status, 'reward/generated_acc'))}",
            f"accept {fraction(_metric(status, 'sampling/acceptance'))}",
            f"queue {number(_metric(status, 'queue/groups'))}",
            f"age {_age(status)}",
            f"{quantity(_metric(status, 'rollout/generated_tokens_per_s'))} tok/s",
            f"eta {duration(_eta_s(status))}",
        )
    )


def evaluation_line(evaluation: pb.Evaluation) -> str:
    """One evaluation, on one line."""
    n = evaluation.n
    return (
        f"evaluated v{evaluation.version.number}{f'  {evaluation.set}' if evaluation.set else ''}"
        f"  avg@{n} {within(evaluation.avg_at_n, evaluation, 'avg_interval')}  pass@{n} {fraction(evaluation.pass_at_n)}"
        f"{f'  maj@{n} {fraction(evaluation.maj_at_n)}' if evaluation.HasField('maj_at_n') else ''}"
        f"  greedy {fraction(evaluation.greedy)}"
        f"{f'  tool use {fraction(evaluation.tool_use)}' if evaluation.tool_use else ''}"
        f"  {evaluation.prompts} prompts in {duration(evaluation.wall_s)}"
        f"{f'  {evaluation.ungraded} samples not graded' if evaluation.ungraded else ''}"
    )


def event_line(event: pb.WatchEventsResponse) -> str:
    """One event, on one line."""
    return f"{event.kind}: {event.message or ', '.join(f'{k}={v}' for k, v in sorted(event.labels.items()))}"


def render(status: pb.GetStatusResponse, *, notes: Iterable[str] = ()) -> RenderableType:
    """The panel: progress, accuracy, groups, freshness, speed, services, and the last notes."""
    parts: list[RenderableType] = [_progress(status), "", _facts(status)]
    if status.ledger.admitted:
        parts += ["", _ledger(status.ledger)]
    if status.services:
        parts += ["", _services(status.services, newest=status.version)]
    if waits := [wait for wait in status.waits if wait.since_s >= _WAIT_SHOWN_S]:
        parts += ["", *map(_wait, sorted(waits, key=lambda wait: -wait.since_s)[:_WAITS_SHOWN])]
    if status.reason:
        parts += ["", Text(printable(status.reason), style="bold red")]
    if shown := [Text(printable(note), style="yellow") for note in notes]:
        parts += ["", *shown]
    title = Text.assemble(("sluice", "bold"), "  ", printable(status.run_id))
    return Panel(Group(*parts), title=title, title_align="left", border_style="dim", padding=(0, 1))


def _progress(status: pb.GetStatusResponse) -> Table:
    row = Table.grid(padding=(0, 2), expand=True)
    row.add_column(no_wrap=True)
    row.add_column(ratio=1)
    row.add_column(no_wrap=True, justify="right")
    row.add_row(
        Text(_run_state(status), style=_RUN_STYLES.get(status.state, "bold yellow")),
        ProgressBar(total=max(1, status.total_steps), completed=status.step, complete_style="green"),
        f"step {status.step}/{status.total_steps}  {duration(status.train_wall_s)}  eta {duration(_eta_s(status))}",
    )
    return row


def _facts(status: pb.GetStatusResponse) -> Columns:
    evaluations = headline(status.evaluations)
    n = evaluations[-1].n if evaluations else "n"
    blocks = {
        "held-out": {
            f"avg@{n}": _change([evaluation.avg_at_n for evaluation in evaluations]),
            "greedy": _change([evaluation.greedy for evaluation in evaluations]),
            **_named_sets(status.evaluations),
        },
        "groups": {
            "pass rate": fraction(_metric(status, "reward/generated_acc")),
            "accepted": fraction(_metric(status, "sampling/acceptance")),
        },
        "waiting": {
            "queued": number(_metric(status, "queue/groups")),
            "in flight": number(_metric(status, "queue/in_flight_groups")),
        },
        "age, steps": {"mean/max": _age(status), "version": f"v{status.version.number}"},
        "speed": {
            "tokens/s": quantity(_metric(status, "rollout/generated_tokens_per_s")),
            "s/step": number(_metric(status, "step/wall_s"), 2),
        },
        **_devices(status),
    }
    return Columns([_block(title, rows) for title, rows in blocks.items()], padding=(0, 3))


def _devices(status: pb.GetStatusResponse) -> dict[str, dict[str, str]]:
    """How full learner and rollouts are; empty for a run without these figures."""
    names = ("learner/mfu", "learner/peak_memory_bytes", "rollout/kv_use", "rollout/preemptions")
    mfu, memory_bytes, kv_use, preemptions = (_metric(status, name) for name in names)
    blocks = {
        "learner": {"MFU": fraction(mfu), "memory": quantity(memory_bytes)},
        "KV cache": {"in use": fraction(kv_use), "preempted": number(preemptions)},
    }
    known = {"learner": (mfu, memory_bytes), "KV cache": (kv_use, preemptions)}
    return {name: rows for name, rows in blocks.items() if not all(map(math.isnan, known[name]))}


def _named_sets(evaluations: Sequence[pb.Evaluation]) -> dict[str, str]:
    """The first accuracies and the last of the first few sets of eval.sets."""
    named = [(name, ones) for name, ones in by_set(evaluations).items() if name]
    return {printable(name): _change([one.avg_at_n for one in ones]) for name, ones in named[:_SETS_SHOWN]}


def _ledger(ledger: pb.Ledger) -> Text:
    filtered = ledger.filtered_all_right + ledger.filtered_all_wrong + ledger.filtered_other
    counts = (
        f"{ledger.admitted} admitted, {ledger.trained} trained, {filtered} without signal; "
        f"{quantity(ledger.generated_tokens)} tokens, {quantity(ledger.trained_tokens)} trained, "
        f"{quantity(ledger.lost_tokens)} lost; "
    )
    closed = ("closed", "green") if ledger.closed else ("NOT CLOSED", "bold red")
    return Text.assemble(("ledger ", "bold"), counts, closed)


def _block(title: str, rows: dict[str, str]) -> Table:
    block = Table.grid(padding=(0, 1))
    block.add_row(Text(title, style="bold"))
    for name, value in rows.items():
        block.add_row(Text(name, style="dim"), value)
    return block


def _services(services: Sequence[pb.ServiceStatus], *, newest: common_pb2.PolicyVersion) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    pushed, on_nodes = any(service.source for service in services), any(service.node for service in services)
    names = ("service", "role", "state", "version", "work", "last seen")
    for name in (*names, *(["newest push"] if pushed else []), *(["node"] if on_nodes else [])):
        table.add_column(name, no_wrap=True)
    troubled_first = sorted(services, key=lambda service: (service.state == pb.SERVICE_STATE_READY, service.role))
    for service in troubled_first[:_SERVICES_SHOWN]:
        state = pb.ServiceState.Name(service.state).removeprefix("SERVICE_STATE_").lower()
        table.add_row(
            Text(printable(service.service_id)),
            pb.ServiceRole.Name(service.role).removeprefix("SERVICE_ROLE_").lower(),
            Text(state, style=_SERVICE_STYLES.get(service.state, "yellow")),
            _version(service, newest),
            f"{service.running}/{service.capacity}" if service.capacity else "",
            f"{number(service.heartbeat_age_s)} s ago",
            *([_push(service)] if pushed else []),
            *([printable(service.node)] if on_nodes else []),
        )
    if len(services) > _SERVICES_SHOWN:
        table.add_row(f"and {len(services) - _SERVICES_SHOWN} more")
    return table


def _version(service: pb.ServiceStatus, newest: common_pb2.PolicyVersion) -> str:
    """The version that a service holds, and how many versions a rollout is behind."""
    if service.role in (pb.SERVICE_ROLE_REWARD, pb.SERVICE_ROLE_ENVIRONMENT):
        return ""
    behind = newest.number - service.version.number if service.HasField("version") else 0
    lag = f" ({behind} behind)" if service.role == pb.SERVICE_ROLE_ROLLOUT and behind > 0 else ""
    return f"v{service.version.number}{lag}"


def _push(service: pb.ServiceStatus) -> str:
    """What travelled to a rollout with its newest version, who sent it, and how long that took."""
    if not service.source:
        return ""
    sent = f"{printable(service.encoding)} {gigabytes(service.sent_bytes)}, ".lstrip() if service.sent_bytes else ""
    return f"{sent}{printable(service.source)}, {number(service.push_ms)} ms"


def _wait(wait: pb.Wait) -> Text:
    return Text.assemble((printable(wait.who), "bold"), f" {printable(wait.why)}, since {duration(wait.since_s)}")


def _metric(status: pb.GetStatusResponse, name: str) -> float:
    return status.metrics.get(name, math.nan)


def _age(status: pb.GetStatusResponse) -> str:
    mean, largest = _metric(status, "staleness/age_mean_steps"), _metric(status, "staleness/age_max_steps")
    return f"{number(mean)}/{number(largest)}"


def _change(values: Sequence[float], *, arrow: str = " → ") -> str:
    """First and last value of a series; the last is '–' until there are two values."""
    before, now = (values[0] if values else math.nan), (values[-1] if len(values) > 1 else math.nan)
    return f"{fraction(before)}{arrow}{fraction(now)}"


def _eta_s(status: pb.GetStatusResponse) -> float:
    """Time left at the average pace so far, in seconds; NaN before the first step and after the last."""
    if status.state != pb.RUN_STATE_RUNNING or not status.step:
        return math.nan
    return status.train_wall_s / status.step * (status.total_steps - status.step)


def _run_state(status: pb.GetStatusResponse) -> str:
    return pb.RunState.Name(status.state).removeprefix("RUN_STATE_").lower()
