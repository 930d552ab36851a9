"""What an operator can ask of a run from the page: each asks first, says what came of it, and is one call of the client."""

from collections.abc import Awaitable, Callable
from typing import Any

from nicegui import ui

from sluice.client import AsyncClient
from sluice.errors import InvalidRequest, SluiceError, Unavailable
from sluice.ui.live import Live
from sluice.ui.parts import box, said
from sluice.ui.shown_text import short

Act = Callable[[AsyncClient], Awaitable[object]]


def buttons(live: Live) -> None:
    """The row of actions."""
    with box(classes="filters"):
        _action(
            live,
            "Pause",
            "Stop admitting groups? Those that run finish; Resume admits again.",
            lambda client: client.pause(),
        )
        _action(live, "Resume", "Admit groups again?", lambda client: client.resume())
        _action(live, "Checkpoint", "Save a checkpoint at the next step boundary?", _checkpoint)
        _action(live, "Evaluate", "Run the default evaluation on the newest version now?", _evaluate)
        _scale(live, "rollout")
        _scale(live, "reward")
        _action(
            live,
            "Stop",
            "End the run after the current step? It can be continued with sluice up --run-dir.",
            _stop,
            kind="bad",
        )


def _action(live: Live, name: str, question: str, act: Act, *, kind: str = "") -> None:
    async def pressed() -> None:
        if await _confirmed(name, question):
            await _do(live, name, act)

    button = said("button", name, f"quiet-button {kind}").props("type=button")
    button.on("click", pressed)


def _scale(live: Live, role: str) -> None:
    async def pressed() -> None:
        replicas = await _number(f"Scale {role}s", f"How many {role}s shall run?", _running(live, role))
        if replicas is not None:
            await _do(live, f"Scale {role}s", lambda client: client.scale(role, replicas))

    button = said("button", f"Scale {role}s", "quiet-button").props("type=button")
    button.on("click", pressed)


def _running(live: Live, role: str) -> int:
    return live.status.scale.get(role, 1) if live.status is not None else 1


async def _confirmed(name: str, question: str) -> bool:
    with ui.dialog() as dialog, ui.card():
        said("h2", f"{name}?")
        said("div", question)
        _answers(dialog, name, lambda: True)
    dialog.on("hide", dialog.delete)
    return bool(await dialog)


async def _number(name: str, question: str, now: int) -> int | None:
    with ui.dialog() as dialog, ui.card():
        said("h2", name)
        with box("label", "field"):
            said("span", question)
            field = ui.number(value=now, min=0, max=4096, precision=0).props("dense outlined autofocus")
        _answers(dialog, name, lambda: -1 if field.value is None else int(field.value))
    dialog.on("hide", dialog.delete)
    answer = await dialog
    return answer if isinstance(answer, int) and answer >= 0 else None


def _answers(dialog: Any, name: str, value: Callable[[], object]) -> None:
    with box(classes="filters").style("margin-top: 10px"):
        yes = said("button", name, "quiet-button").props("type=button data-key=confirm")
        yes.on("click", lambda: dialog.submit(value()))
        said("button", "Leave it", "quiet-button").props("type=button").on("click", lambda: dialog.submit(None))


async def _do(live: Live, name: str, act: Act) -> None:
    """Calls, and says how it ended."""
    ui.notify(f"{name}: asked")
    try:
        if live.client is None:
            raise Unavailable(f"{live.address} has not been asked yet; try again in a moment")
        answer = await act(live.client)
    except (SluiceError, InvalidRequest) as error:
        ui.notify(
            f"{name} was refused: {short(str(error), most=400)}", type="negative", timeout=15_000, close_button="OK"
        )
        return
    ui.notify(f"{name}: {short(str(answer), most=300)}", type="positive")


async def _checkpoint(client: AsyncClient) -> str:
    return (await client.save_checkpoint()).path


async def _evaluate(client: AsyncClient) -> str:
    result = await client.evaluate()
    return f"avg@{result.n} {100 * result.avg_at_n:.1f} % over {result.prompts} prompts"


async def _stop(client: AsyncClient) -> object:
    return await client.stop(reason="stopped from the page")
