"""What a browser looks at: a recorded run with hostile texts, a run that is up, and the page's server, in one event loop."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import uvicorn
from playwright.async_api import Browser, Page, async_playwright

from services.coordinator.state.ledger_row import queued_row
from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from sluice.config.load import dump_config
from sluice.run_dir.evaluation_schema import EVALUATION_SCHEMA
from sluice.run_dir.naming import ADDRESS_FILE
from sluice.run_dir.token_figures import SAMPLE_TOKENS_FILE, TokenFigures, line_of
from sluice.testing.fakes import FakeRollout
from sluice.ui.app import server_of
from sluice.ui.gate import Gate, Tokens
from sluice.ui.runs import Runs, open_runs
from tests.integration.coordinator_cases import Cast, Coordinator, coordinator, small_config
from tests.needs import chromium
from tests.unit.report.ledger_cases import accepted, make_group, two_attempts, write_run

FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking")
FLAGS += ("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage")

MARKUP = "<script>window.hacked = 1</script><img src=x onerror='window.hacked = 2'>`${window.hacked = 3}`{{ hacked }}"
HOSTILE = MARKUP + "\x1b[2J\u202egnp.exe"
SHOWN = MARKUP + "␛[2J⟨U+202E⟩gnp.exe"
"""HOSTILE as the page shows it."""

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
"""Of the group with hostile texts."""

SHIFTS = (
    "shifts = 0; new PerformanceObserver(found => found.getEntries().forEach(one => { shifts += one.value })).observe("
)
SHIFTS += "{ type: 'layout-shift', buffered: true })"
"""Sums up how much of what is in sight has moved by itself, as a browser weighs it: https://web.dev/articles/cls."""


@dataclass(kw_only=True)
class Looking:
    """A page of the browser, and what went wrong on it."""

    page: Page
    errors: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    """Requests to another host than the page's server."""

    async def open(self, address: str) -> None:
        await self.page.goto(address, timeout=60_000)

    async def sees(self, text: str, *, within_s: float = 30.0) -> None:
        """Returns when the text is visible."""
        await self.page.get_by_text(text).first.wait_for(state="visible", timeout=1000 * within_s)


@dataclass(kw_only=True)
class UiScene:
    """The page's server, the browser, and a live run whose coordinator can be taken away."""

    base: str
    server: uvicorn.Server
    browser: Browser
    cast: Cast
    second: FakeRollout
    """`rollout-1`, for killing."""
    serve: Callable[[], contextlib.AbstractAsyncContextManager[Coordinator]]
    run: Coordinator
    up: contextlib.AsyncExitStack
    """Holds the coordinator that is up."""

    async def take_coordinator_away(self) -> None:
        """As a SIGTERM does."""
        await self.up.aclose()

    async def bring_coordinator_back(self) -> None:
        """At the address that it had."""
        self.run = await self.up.enter_async_context(self.serve())

    @contextlib.asynccontextmanager
    async def looking(self, **how: Any) -> AsyncIterator[Looking]:
        """A new page, without cookies; what went wrong on it fails the test."""
        context = await self.browser.new_context(**how)
        await context.add_init_script(SHIFTS)
        page = await context.new_page()
        looking = Looking(page=page)
        page.on("console", lambda said: looking.errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: looking.errors.append(str(error)))
        page.on("request", lambda asked: self._asked(looking, asked.url))
        try:
            yield looking
            assert looking.errors == []
            assert looking.elsewhere == []
            assert await page.evaluate("window.hacked") is None
        finally:
            await context.close()

    def _asked(self, looking: Looking, url: str) -> None:
        if not url.startswith(("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")):
            looking.elsewhere.append(url)


def record_run(folder: Path, model: Path) -> Path:
    """Eight groups, one whose prompt and samples are hostile; eight steps; two evaluations."""
    run_dir = write_run(folder)
    hostile = two_attempts(make_group(7, 1.0, 0.0))
    hostile.trace_id = TRACE
    hostile.prompt = type(hostile.prompt)(
        prompt_id="<b>p7</b>", data_source="<i>sums</i>", text=HOSTILE + "x" * 1_000_000
    )
    for index, sample in hostile.samples.items():
        hostile.samples[index] = type(sample)(**{**_fields(sample), "text": HOSTILE})
    files = RunFiles(run_dir)

    async def write() -> None:
        await files.write_ledger([queued_row(accepted(hostile), term="trained", step=5)], after=7, most=4)
        batch = await files.stage_batch(5, payloads=[ZstdGroups().encode(hostile)])
        await files.name_batch(5, batch.digest)
        tokens = hostile.response_tokens
        figures = TokenFigures(
            group_id=hostile.group_id, log_ratios=np.full(tokens, np.log(0.5)), entropies=np.ones(tokens)
        )
        line = line_of(5, hostile.group_id, payload=batch.payloads[0], figures=figures)
        await files.append_sample(line, name=SAMPLE_TOKENS_FILE)

    asyncio.run(write())
    (run_dir / "config.yaml").write_text(
        dump_config(small_config(model, coordinator__max_staleness=4)), encoding="utf-8"
    )
    lines: list[dict[str, Any]] = [_evaluation(0, 0.25), *(_step(number) for number in range(8)), _evaluation(8, 0.75)]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run_dir / "summary.json").write_text('{"train_wall_s": 80.0}', encoding="utf-8")
    (run_dir / "evaluations").mkdir()
    for version in (0, 8):
        rows = [_prompt(number, version) for number in range(4)]
        pq.write_table(
            pa.Table.from_pylist(rows, schema=EVALUATION_SCHEMA), run_dir / "evaluations" / f"a-{version:06d}.parquet"
        )
    return run_dir


def _fields(sample: Any) -> dict[str, Any]:
    return {name: getattr(sample, name) for name in type(sample).__dataclass_fields__}


def _step(number: int) -> dict[str, Any]:
    values = {"reward/generated_mean": 0.1 * number, "reward/trained_mean": 0.5, "sampling/acceptance": 0.6}
    values |= {"staleness/age_mean_steps": 0.5, "staleness/age_max_steps": 1.0, "loss/entropy_nats": 1.5}
    return {"kind": "step", "step": number, "time_s": 1000.0 + 10 * number, "lineage": "a", **values}


def _evaluation(version: int, value: float) -> dict[str, Any]:
    interval = {"eval/avg_at_n_low": value - 0.1, "eval/avg_at_n_high": value + 0.1}
    return {"kind": "eval", "version": version, "time_s": 1000.0, "lineage": "a", "eval/avg_at_n": value, **interval}


def _prompt(number: int, version: int) -> dict[str, Any]:
    right = (number in (1, 2)) if version else (number == 3)
    told = {
        "set": "",
        "lineage": "a",
        "version": version,
        "prompt": number,
        "prompt_id": f"e{number}",
        "n": 1,
        "graded": 1,
    }
    return told | {
        "data_source": "sums",
        "correct": int(right),
        "accuracy": float(right),
        "majority_answer": HOSTILE[:60],
    }


@contextlib.asynccontextmanager
async def ui_scene(folder: Path, *, model: Path, redis_url: str, port: int) -> AsyncIterator[UiScene]:
    """Everything is up meanwhile; the live run has trained one step of five."""
    recorded = await asyncio.to_thread(record_run, folder, model)
    run_dir, cast = folder / "live", Cast(model)
    beats = {"coordinator__heartbeat_timeout_s": 2.0, "coordinator__heartbeat_interval_s": 0.4}
    config = small_config(model, run__total_steps=5, **beats)

    def serve() -> contextlib.AbstractAsyncContextManager[Coordinator]:
        return coordinator(config, run_dir, redis_url, port=port)

    async with contextlib.AsyncExitStack() as stack:
        up = contextlib.AsyncExitStack()
        run = await up.enter_async_context(serve())
        stack.push_async_callback(up.aclose)
        (run_dir / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        (run_dir / ADDRESS_FILE).write_text(run.address, encoding="utf-8")
        second = FakeRollout(service_id="rollout-1", model=model)
        for service in (cast.reward, cast.rollout, second, cast.learner):
            await service.join(run.address)
            stack.push_async_callback(service.stop)
        await cast.learner.train(run, range(1))
        no_coordinator = open_runs([], coordinator=cast.learner.address, credentials=None)
        runs = Runs([*open_runs([recorded, run_dir], coordinator="", credentials=None), *no_coordinator])
        server, base = await stack.enter_async_context(page_server(runs))
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        stack.push_async_callback(browser.close)
        yield UiScene(base=base, server=server, browser=browser, cast=cast, second=second, serve=serve, run=run, up=up)


@contextlib.asynccontextmanager
async def page_server(runs: Runs) -> AsyncIterator[tuple[uvicorn.Server, str]]:
    """The server on loopback, and its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    server = server_of(runs, host="127.0.0.1", port=port, tokens=None)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield server, f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)


@contextlib.asynccontextmanager
async def guarded(scene: UiScene, tokens: Tokens) -> AsyncIterator[str]:
    """The same pages as they are served beyond loopback."""
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    app = Gate(scene.server.config.app._app, tokens=tokens, port=port)  # type: ignore[union-attr]
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="warning", access_log=False))
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        await asyncio.gather(serving, return_exceptions=True)
