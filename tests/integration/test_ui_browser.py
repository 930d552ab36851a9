"""The page in a real browser, over a recorded run with hostile texts and over a live one whose parts are killed meanwhile."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from sluice.client import RunState
from sluice.launch.embedded_redis import start_redis
from sluice.ui.gate import Tokens
from sluice.ui.page import VIEWS
from tests.free_port import free_port
from tests.integration.ui_scene import SHOWN, TRACE, UiScene, guarded, ui_scene

pytestmark = [
    pytest.mark.integration,
    pytest.mark.needs("chromium"),
    pytest.mark.timeout(240),
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(model: Path, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[UiScene]:
    folder = tmp_path_factory.mktemp("ui")
    redis = await start_redis(folder / "redis", log_path=folder / "redis.log")
    try:
        async with ui_scene(folder, model=model, redis_url=redis.url, port=free_port()) as one:
            yield one
    finally:
        redis.child.kill("the test is over")
        await redis.stop()


ON_VIEW = {
    "overview": ("Held-out accuracy", "25.0 → 75.0", "coordinator.max_staleness: 4", "What became of the groups"),
    "groups": ("Groups that have ended", "8 groups fit", "failed:reward timeout", "<i>sums</i>"),
    "fleet": ("This run is not up",),
    "data": ("Prompts by pass rate", "8 prompts"),
    "evaluation": ("What was learned, what was lost", "learned 2", "lost 1"),
    "configuration": ("Configuration", "data.train_batch_size"),
}


async def test_every_view_of_a_recorded_run_on_a_phone_and_in_the_dark(scene: UiScene) -> None:
    assert ON_VIEW.keys() == VIEWS.keys()
    async with scene.looking(viewport={"width": 390, "height": 844}, color_scheme="dark") as looking:
        for view, texts in ON_VIEW.items():
            await looking.open(f"{scene.base}/{view}")
            for text in texts:
                await looking.sees(text)
            width = await looking.page.evaluate("document.documentElement.scrollWidth")
            assert width <= 390, view
            assert await looking.page.evaluate("shifts") < 0.1, f"{view} jumps while it comes"
        assert await looking.page.evaluate("document.body.classList.contains('body--dark')")
        assert await looking.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(15, 18, 22)"
        tab = await looking.page.locator(".tabs a[aria-current]").bounding_box()
        assert tab is not None
        assert 0 <= tab["x"] <= 390 - tab["width"], "the open tab, which is the last one, is in sight"


async def test_a_filter_narrows_the_table_and_stands_in_the_address_which_opens_the_same_again(scene: UiScene) -> None:
    async with scene.looking() as looking:
        await looking.open(f"{scene.base}/groups")
        await looking.sees("8 groups fit")
        await looking.page.get_by_label("right, share 0 to 1, from").fill("0.9")
        await looking.sees("1 groups fit")
        assert looking.page.url == f"{scene.base}/groups?acc_low=0.9"
        await looking.page.get_by_label("step, from").fill("x")
        assert looking.page.url == f"{scene.base}/groups?acc_low=0.9"
        await looking.open(looking.page.url)
        await looking.sees("1 groups fit")
        await looking.open(f"{scene.base}/groups?acc_low=much&term=filtered")
        await looking.sees("acc_low: must be a number, got 'much'; left out")
        await looking.sees("2 groups fit")
        await looking.page.get_by_role("columnheader", name="samples").focus()
        await looking.page.keyboard.press("Enter")
        await looking.page.wait_for_url("**sort=samples**")
        await looking.page.keyboard.press("5")
        await looking.sees("What was learned, what was lost")


async def test_hostile_prompts_and_completions_are_text(scene: UiScene) -> None:
    async with scene.looking() as looking:
        await looking.open(f"{scene.base}/groups?prompt=%3Cb%3Ep7%3C%2Fb%3E")
        await looking.sees("1 groups fit")
        await looking.page.locator("td a").first.click()
        await looking.sees("the first 20,000 characters; 980")
        await looking.sees(TRACE)
        blocks = await looking.page.locator("pre.said").all_text_contents()
        assert [block.startswith(SHOWN) for block in blocks[:1]] == [True]
        tokens = await looking.page.locator("sl-tokens").count()
        assert tokens == 2
        assert await looking.page.locator("sl-tokens span.t").count() > 2
        token = looking.page.locator("sl-tokens span.t").first
        assert "ratio 0.4999, entropy 1.000 nats" in (await token.get_attribute("title") or "")
        for colouring, colour in (("entropy", "rgba(28, 130, 201, 0.3)"), ("ratio", "rgba(213, 94, 0, 0.6)")):
            await looking.page.get_by_role("button", name=colouring, exact=True).click()
            await looking.page.wait_for_function(
                "colour => getComputedStyle(document.querySelector('sl-tokens span.t')).backgroundColor === colour",
                arg=colour,
            )
            assert looking.page.url.endswith(f"?colour={colouring}")
        await looking.sees("÷ 1.3 or less likely than in the rollout")
        await looking.page.get_by_role("button", name="advantage", exact=True).click()
        await looking.open(f"{scene.base}/group/run-0000000?colour=entropy")
        await looking.sees("They are kept for one group a step")
        assert await looking.page.locator("main script, .view img").count() == 0
        await looking.open(f"{scene.base}/evaluation")
        await looking.sees("<script>window.hacked")
        await looking.open(f"{scene.base}/group/%3Cscript%3Ewindow.hacked=4%3C%2Fscript%3E")
        await looking.sees("has no row in the ledger of run")
        await looking.open(f"{scene.base}/overview?run=%3Cscript%3E")
        await looking.sees("is none of those shown here")


async def test_a_live_run_moves_by_itself_a_killed_service_is_seen_and_an_action_asks_first(scene: UiScene) -> None:
    async with scene.looking() as looking:
        page = looking.page
        await looking.open(f"{scene.base}/fleet?run=live")
        await looking.sees("rollout-1")
        await looking.sees("ready")
        await page.get_by_role("cell", name="cpu", exact=True).first.wait_for()
        await scene.second.stop()
        await looking.sees("lost")
        await page.get_by_role("button", name="Pause").click()
        await looking.sees("Stop admitting groups?")
        assert (await scene.run.status()).state == RunState.RUNNING
        await page.get_by_role("button", name="Leave it").click()
        await page.get_by_text("Stop admitting groups?").wait_for(state="hidden")
        await page.get_by_role("button", name="Pause").click()
        await page.locator("[data-key=confirm]:visible").click()
        await looking.sees("paused")
        assert (await scene.run.status()).state == RunState.PAUSED
        await page.get_by_role("button", name="Resume").click()
        await page.locator("[data-key=confirm]:visible").click()
        await looking.sees("running")
        step = (await scene.run.status()).step
        await looking.open(f"{scene.base}/overview?run=live")
        await looking.sees(f"step {step} of 5")
        await scene.cast.learner.train(scene.run, range(step, step + 1))
        await looking.sees(f"step {step + 1} of 5")


async def test_a_coordinator_that_goes_is_missed_and_found_again_without_a_reload(scene: UiScene) -> None:
    async with scene.looking() as looking:
        await looking.open(f"{scene.base}/overview?run=live")
        await looking.sees("running")
        await scene.take_coordinator_away()
        await looking.sees("has not answered for")
        await scene.bring_coordinator_back()
        await looking.page.get_by_text("has not answered for").wait_for(state="hidden", timeout=30_000)
        await looking.sees("of 5")


async def test_a_server_that_is_no_coordinator_of_this_version_is_named(scene: UiScene) -> None:
    async with scene.looking() as looking:
        await looking.open(f"{scene.base}/overview?run={scene.cast.learner.address}")
        await looking.sees("is it one of this version of Sluice?")


async def test_beyond_loopback_a_link_opens_the_pages_and_a_readers_has_no_actions(scene: UiScene) -> None:
    tokens = Tokens()
    async with guarded(scene, tokens) as base:
        async with scene.looking() as looking:
            answer = await looking.page.request.get(f"{base}/fleet?run=live")
            assert (answer.status, "open the link" in await answer.text()) == (401, True)
            await looking.open(f"{base}/fleet?run=live&token={tokens.reader}")
            assert looking.page.url == f"{base}/fleet?run=live"
            await looking.sees("rollout-0")
            assert await looking.page.get_by_role("button", name="Pause").count() == 0
        async with scene.looking() as looking:
            await looking.open(f"{base}/fleet?run=live&token={tokens.operator}")
            await looking.page.get_by_role("button", name="Pause").wait_for(timeout=30_000)
