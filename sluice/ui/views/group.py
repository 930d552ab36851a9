"""One group: what it was asked, what the policy wrote token by token, how it was scored, and its life."""

from collections.abc import Mapping
from typing import Any

from sluice.report.figures import duration
from sluice.report.group_page import sentences_of
from sluice.ui.found_group import Found, find_group
from sluice.ui.page import Page
from sluice.ui.parts import box, chip, link, panel, said, term_look, text_block
from sluice.ui.views.group_samples import samples


async def show(page: Page, group_id: str) -> None:
    """The view."""
    found = await find_group(page.run, group_id)
    row, facts = found.row, sentences_of(found.row, config=found.config)
    _head(page, found, facts.headline)
    with box(classes="two"):
        with panel("What happened"):
            for label, text in (("prompt", facts.prompt), ("admitted", facts.admission), ("verdict", facts.verdict)):
                with box(classes="note-line").style("margin-bottom: 6px"):
                    said("span", label, "soft small")
                    said("div", text)
            for line in facts.training:
                said("div", line, "note-line good").style("margin-bottom: 6px")
        with box(classes="stack"):
            with panel("Its life"):
                _life(row)
            with panel("Prompt").style("flex: 1 1 auto"):
                if isinstance(found.texts, str):
                    said("div", f"Texts: {found.texts}.", "soft")
                else:
                    text_block(found.texts.prompt)
    samples(page, found)


def _head(page: Page, found: Found, headline: str) -> None:
    row = found.row
    words, kind, _ = term_look(row["term"])
    with box(classes="panel-head"):
        said("h1", f"Group {row['group_id']}").style("font-size: 1.2rem")
        chip(words, kind)
        said("span", headline, "soft small")
        box(classes="grow")
        for key, name, label in (("before", found.before, "← earlier"), ("after", found.after, "later →")):
            if name is not None:
                link(label, page.group(name), "quiet-button").props(
                    f'data-key={key} title="key {"[" if key == "before" else "]"}"'
                )
        prompt = {"prompt": row["prompt_id"]}
        link("groups of this prompt", page.address("groups", prompt), "quiet-button")


def _life(row: Mapping[str, Any]) -> None:
    """A track for each attempt, from admission to the end."""
    begin, end = row.get("admitted_s") or 0, row.get("ended_s") or 0
    attempts = [one for one in row.get("attempts") or () if one["started_s"] > 0]
    if begin <= 0:
        said("div", "When the group was admitted was not recorded.", "soft")
        return
    end = max([end, begin, *(one["ended_s"] for one in attempts)])
    span = max(end - begin, 1e-3)

    def bar(start: float, stop: float, kind: str, label: str) -> None:
        left, width = 100 * (start - begin) / span, 100 * max(stop - start, 0) / span
        box(classes=kind).style(f"left: {left:.2f}%; width: {width:.2f}%").props(f'title="{label}"')

    with box(classes="life"):
        first = min((one["started_s"] for one in attempts), default=end)
        said("span", "waits to start", "soft")
        with box(classes="track"):
            bar(begin, first, "wait", f"{first - begin:.2f} s")
        last = first
        for one in attempts:
            stop = one["ended_s"] if one["ended_s"] > 0 else end
            said("span", f"{one['rollout'] or 'restart'} · v{one['version']}", "nowrap")
            took = (
                f"{one['samples']} of {one['asked']} samples, {one['tokens']} tokens in {stop - one['started_s']:.2f} s"
            )
            with box(classes="track"):
                bar(one["started_s"], stop, "bad" if one["fault"] else "", f"attempt {one['number']}: {took}")
            last = max(last, stop)
        said("span", "graded, decided, queued", "soft")
        with box(classes="track"):
            bar(last, end, "done", f"{end - last:.2f} s")
    with box(classes="legend small soft num"):
        said("span", f"from admission to the end: {_seconds(span)}")
        said("span", f"generation: {_seconds(sum(max(0, one['ended_s'] - one['started_s']) for one in attempts))}")
        for one in attempts:
            if one["fault"]:
                said("span", f"attempt {one['number']} was repeated or given up: {one['fault']}")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 60 else f"{duration(value)} min"
