"""The newest groups as the coordinator knows them, live or ended."""

import asyncio

from nicegui import ui

from sluice.errors import SluiceError
from sluice.report.figures import ABSENT
from sluice.ui.page import Page
from sluice.ui.parts import box, chip, link, panel, plain_table, said, term_look

REFRESH_S = 2.0
SHOWN = 12


async def live_groups(page: Page) -> None:
    """Kept up to date while the page is open; drawn before it is sent, so that what stands below stays in its place."""
    with panel("Newest groups", note="as the coordinator knows them, live or ended"):
        content = box().style("min-height: 120px")
    shown: list[object] = []

    async def refresh() -> None:
        live = page.run.live
        if live is None or live.client is None or live.away_since is not None:
            return
        try:
            async with asyncio.timeout(REFRESH_S):
                found = await live.client.groups(limit=SHOWN)
        except (SluiceError, TimeoutError):
            return  # the banner says so
        now: list[object] = [(one.group_id, one.state, one.step, one.oldest_version, one.attempt) for one in found]
        if now and now == shown:
            return
        shown[:] = now
        content.clear()
        with content:
            if not found:
                said("div", "No group has been admitted yet.", "soft")
                return
            plain_table(
                ("group", "state", "step", "oldest version", "attempts"),
                [
                    (
                        lambda one=one: link(one.group_id, page.group(one.group_id)),
                        lambda one=one: chip(*term_look(one.state)[:2]),
                        str(one.step) if one.step >= 0 else ABSENT,
                        str(one.oldest_version) if one.oldest_version >= 0 else ABSENT,
                        str(one.attempt),
                    )
                    for one in found
                ],
                right=(2, 3, 4),
            )

    await refresh()
    ui.timer(REFRESH_S, refresh)
