"""One page as a view sees it: the run, the runs laid over it, the address, and what surrounds every view."""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import quote, urlencode

from nicegui import ui

from sluice.client import RunState
from sluice.errors import SluiceError
from sluice.report.figures import duration
from sluice.ui.parts import box, chip, link, said
from sluice.ui.runs import Run, Runs
from sluice.ui.shown_text import short

VIEWS: Mapping[str, str] = {
    "overview": "Overview",
    "groups": "Groups",
    "fleet": "Fleet",
    "data": "Data",
    "evaluation": "Evaluation",
    "configuration": "Configuration",
}
"""In the order of the tabs; the keys 1 to 6 open them."""

_STATES = {
    "running": "good",
    "finishing": "good",
    "finished": "good",
    "failed": "bad",
    "starved": "bad",
    "paused": "warn",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Page:
    """What a view needs to know."""

    runs: Runs
    run: Run
    over: tuple[Run, ...]
    """Runs that are laid over `run`."""
    query: Mapping[str, str]
    """The rest of the address."""
    role: str
    """`operator` or `reader`."""
    view: str

    def address(self, view: str, query: Mapping[str, str] | None = None) -> str:
        """The address of a view of the same runs; `view` may have a path of its own behind it."""
        state: dict[str, str] = {}
        if self.run is not self.runs.first:
            state["run"] = self.run.name
        if self.over:
            state["with"] = ",".join(run.name for run in self.over)
        state |= dict(query or {})
        return f"/{view}" + (f"?{urlencode(state)}" if state else "")

    def group(self, group_id: str) -> str:
        """The address of one group."""
        return self.address(f"group/{quote(group_id, safe='')}")

    def keep(self, query: Mapping[str, str]) -> None:
        """Puts the state of the view into the browser's address."""
        ui.navigate.history.replace(self.address(self.view, query))


def page_of(runs: Runs, view: str, query: Mapping[str, str], role: str) -> Page:
    """The page of an address. Raises NotFound for a run that is not shown here."""
    run = runs.named(query.get("run", ""))
    names = [name for name in query.get("with", "").split(",") if name]
    over = tuple(one for one in dict.fromkeys(map(runs.named, names)) if one is not run) if names else ()
    rest = {name: value for name, value in query.items() if name not in ("run", "with", "token")}
    return Page(runs=runs, run=run, over=over, query=rest, role=role, view=view)


@contextmanager
def frame(page: Page) -> Iterator[None]:
    """Header, tabs and banner around a view."""
    with box("header", "top"):
        with box(classes="top-row"):
            link("Sluice", "/", "brand")
            said("span", page.run.name, "run-name")
            _state(page.run)
            box(classes="grow")
            _other_runs(page)
            theme = box("button", "quiet-button").props(
                'data-key=theme type=button title="light or dark (key t)" aria-label="light or dark"'
            )
            with theme:
                said("span", "◐")
                said("span", " Theme", "theme-word")
            theme.on("click", js_handler="() => nextTheme()")
        with box("nav", "tabs").props('aria-label="views"'):
            for number, (view, name) in enumerate(VIEWS.items(), start=1):
                tab = link(name, page.address(view)).props(f'title="key {number}"')
                if view == page.view or (view == "groups" and page.view.startswith("group/")):
                    tab.props("aria-current=page")
    _banner(page.run)
    with box(classes="view"), box(classes="stack"):
        yield


def _state(run: Run) -> None:
    """State and progress, kept up to date."""
    mark = chip("")
    with box(classes="progress num soft small"):
        with box(classes="bar"):
            done = box()
        steps = said("span", "")

    def show() -> None:
        word, reached, total = _standing(run)
        mark.text = word
        mark.classes(replace=f"chip {_STATES.get(word, '')}")
        steps.text = f"step {reached:,} of {total:,}" if total else f"step {reached:,}"
        done.style(f"width: {100 * reached / total if total else 0:.1f}%")

    show()
    if run.live is not None:
        ui.timer(1.0, show)


def _standing(run: Run) -> tuple[str, int, int]:
    """State, steps trained, steps to train."""
    if run.live is not None and run.live.status is not None:
        status = run.live.status
        return str(RunState(status.state)), status.step, status.total_steps
    try:
        steps = run.files.metrics().steps if run.files is not None else ()
    except SluiceError:
        steps = ()  # the view says so
    reached = int(steps[-1]["step"]) + 1 if steps else 0
    ended = run.files is not None and run.files.summary() is not None
    return "ended" if ended else "not connected" if run.live else "files only", reached, _to_train(run)


def _to_train(run: Run) -> int:
    """Steps of the configuration; 0 where it cannot be read."""
    try:
        return run.config().run.total_steps
    except SluiceError:
        return 0


def _other_runs(page: Page) -> None:
    """Another run to look at, and runs to lay over this one."""
    if len(page.runs) < 2:
        return
    names = [run.name for run in page.runs]

    here = "groups" if page.view.startswith("group/") else page.view  # another run has no such group

    def go(name: str) -> None:
        ui.navigate.to(f"/{here}?{urlencode({'run': name})}")

    def lay(chosen: list[str]) -> None:
        state = {"run": page.run.name, "with": ",".join(chosen)}
        ui.navigate.to(f"/{page.view}?{urlencode(state | dict(page.query))}")

    with box("label", "field"):
        ui.select(names, value=page.run.name, on_change=lambda event: go(event.value)).props(
            'dense outlined options-dense aria-label="run"'
        )
    others = [name for name in names if name != page.run.name]
    if page.view in ("overview", "configuration"):
        with box("label", "field"):
            chosen = ui.select(others, value=[run.name for run in page.over], multiple=True)
            chosen.props('dense outlined options-dense prefix="lay over" aria-label="runs to lay over this one"').on(
                "popup-hide", lambda: lay(list(chosen.value))
            )


def _banner(run: Run) -> None:
    """Says that the coordinator does not answer, or that its answer cannot be used; empty otherwise."""
    if run.live is None:
        return
    live, banner = run.live, said("div", "", "banner").props("role=status")

    def show() -> None:
        gone = live.away_since is not None and not live.is_over
        useless = live.status is None and live.away_since is None and live.problem != ""
        banner.set_visibility(gone or useless)
        if useless:
            why = short(live.problem, most=400)
            banner.text = (
                f"The coordinator at {live.address} cannot be asked: {why}; is it one of this version of Sluice?"
            )
        if live.away_since is not None and gone:
            since = duration(time.time() - live.away_since)
            banner.text = (
                f"The coordinator at {live.address} has not answered for {since}; shown is what was known before. It is asked "
                "again every second."
            )

    show()
    ui.timer(1.0, show)
