"""The web server: pages by address, what every page shares, and the coordinators that are asked meanwhile.

who waits     for what                    unblocked by
the server    the end                     Ctrl-C, SIGTERM, `server.should_exit`
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from nicegui import Client, ui
from nicegui import app as pages
from starlette.responses import RedirectResponse

from sluice.errors import NotReady, SluiceError
from sluice.ui.gate import ROLE, Gate, Tokens
from sluice.ui.page import VIEWS, Page, frame, page_of
from sluice.ui.parts import box, empty
from sluice.ui.runs import Runs
from sluice.ui.views import configuration, data, evaluation, fleet, group, groups, overview

ASSETS = Path(__file__).parent / "assets"
BUILD_S = 30.0
"""How long a page may take to be built."""
LOOK_AGAIN_S = 10.0
"""After so long a page that has nothing to show yet is asked for again."""

_VIEWS = {
    "overview": overview.show,
    "groups": groups.show,
    "fleet": fleet.show,
    "data": data.show,
    "evaluation": evaluation.show,
    "configuration": configuration.show,
}
_SHARED = """<link rel="stylesheet" href="/assets/page.css"><script src="/assets/page.js" defer></script>"""


def make_app(runs: Runs, *, tokens: Tokens | None, port: int) -> Any:
    """The ASGI application. Once a process: the library keeps its pages for the whole process."""
    inner = FastAPI(lifespan=_asking(runs), docs_url=None, redoc_url=None, openapi_url=None)
    _add_pages(runs)
    ui.run_with(
        inner,
        title="Sluice",
        favicon=ASSETS / "icon.svg",
        dark=None,
        tailwind=False,
        show_welcome_message=False,
        binding_refresh_interval=None,
        reconnect_timeout=20.0,
        language="en-US",
    )
    return Gate(inner, tokens=tokens, port=port, pages=lambda: len(Client.instances))


def server_of(runs: Runs, *, host: str, port: int, tokens: Tokens | None) -> uvicorn.Server:
    """A server that is not started yet; it says nothing on its own."""
    config = uvicorn.Config(
        make_app(runs, tokens=tokens, port=port),
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        ws_max_size=1 << 20,
        timeout_graceful_shutdown=2,
    )
    return uvicorn.Server(config)


def _asking(runs: Runs) -> Any:
    """Asks the runs' coordinators while the server is up."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(run.live.serve()) for run in runs if run.live is not None]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return lifespan


def _add_pages(runs: Runs) -> None:
    pages.add_static_files("/assets", str(ASSETS))
    ui.add_head_html(_SHARED, shared=True)
    ui.page("/", response_timeout=BUILD_S)(lambda: RedirectResponse("/overview"))
    for view, show in _VIEWS.items():
        ui.page(f"/{view}", title=f"{VIEWS[view]} · Sluice", response_timeout=BUILD_S)(_page(runs, view, show))

    async def one_group(request: Request, group_id: str) -> None:
        await _show(runs, f"group/{group_id}", request, lambda page: group.show(page, group_id))

    ui.page("/group/{group_id:path}", title="Group · Sluice", response_timeout=BUILD_S)(one_group)


def _page(runs: Runs, view: str, show: Any) -> Any:
    async def page(request: Request) -> None:
        await _show(runs, view, request, show)

    return page


async def _show(runs: Runs, view: str, request: Request, show: Any) -> None:
    theme = request.cookies.get("sluice-theme", "")
    ui.dark_mode({"dark": True, "light": False}.get(theme))
    try:
        page: Page = page_of(runs, view, request.query_params, request.scope.get(ROLE, "reader"))
    except SluiceError as error:
        with box(classes="view"):
            empty("There is no such run here", str(error))
        return
    with contextlib.suppress(SluiceError):
        await asyncio.to_thread(page.run.metrics)  # a long file would keep all pages waiting in the frame below
    with frame(page), box(classes="stack") as content:
        try:
            await page.run.ask_config()
            await show(page)
        except SluiceError as error:
            content.clear()
            with content:
                empty("Nothing to show yet" if isinstance(error, NotReady) else "This cannot be shown", str(error))
                if isinstance(error, NotReady) and page.run.live is not None:
                    ui.timer(LOOK_AGAIN_S, ui.navigate.reload, once=True)
