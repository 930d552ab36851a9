"""One group: what it was asked, what the policy wrote token by token, how it was scored, and its life."""

from collections.abc import Mapping
from dataclasses import dataclass
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
            if trace := found.row.get("trace_id"):
                with box(classes="note-line"):
                    said("span", "trace", "soft small")
                    said("div", trace, "mono whole")
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A part of a group's life, in Unix seconds."""

    name: str
    kind: str
    begin_s: float
    end_s: float
    said: str


def stretches(row: Mapping[str, Any]) -> list[Stretch]:
    """From the admission to the end, in order; nothing where the admission was not recorded."""
    begin = row.get("admitted_s") or 0
    attempts = [one for one in row.get("attempts") or () if one["started_s"] > 0]
    if begin <= 0:
        return []
    end = max([row.get("ended_s") or 0, begin, *(one["ended_s"] for one in attempts)])
    first = min((one["started_s"] for one in attempts), default=end)
    found = [_stretch("waits to start", "wait", begin, first)]
    for one in attempts:
        stop = one["ended_s"] if one["ended_s"] > 0 else end
        took = f"{one['samples']} of {one['asked']} samples, {one['tokens']} tokens in {stop - one['started_s']:.2f} s"
        name, kind = f"{one['rollout'] or 'restart'} · v{one['version']}", "bad" if one["fault"] else ""
        found.append(
            Stretch(name=name, kind=kind, begin_s=one["started_s"], end_s=stop, said=f"attempt {one['number']}: {took}")
        )
    last = max(first, *(one.end_s for one in found))
    marks = {name: row.get(name) or -1.0 for name in ("graded_s", "queued_s", "assigned_s")}
    if min(marks["graded_s"], row.get("grading_s") or -1.0) <= 0:
        return [*found, _stretch("graded, decided, queued", "done", last, end)]
    found.append(_stretch("graded", "done", row["grading_s"], marks["graded_s"]))
    if marks["queued_s"] > 0:
        queued_to = marks["assigned_s"] if marks["assigned_s"] > 0 else end
        found.append(_stretch("in the queue", "wait", marks["queued_s"], queued_to))
    if marks["assigned_s"] > 0:
        found.append(_stretch("in its batch", "done", marks["assigned_s"], end))
    return found


def _stretch(name: str, kind: str, begin_s: float, end_s: float) -> Stretch:
    return Stretch(name=name, kind=kind, begin_s=begin_s, end_s=end_s, said=f"{max(0.0, end_s - begin_s):.2f} s")


def _life(row: Mapping[str, Any]) -> None:
    """A track for each stretch, from admission to the end."""
    found = stretches(row)
    if not found:
        said("div", "When the group was admitted was not recorded.", "soft")
        return
    begin = found[0].begin_s
    span = max(max(one.end_s for one in found) - begin, 1e-3)
    with box(classes="life"):
        for one in found:
            left, width = 100 * (one.begin_s - begin) / span, 100 * max(one.end_s - one.begin_s, 0) / span
            said("span", one.name, "nowrap" if "·" in one.name else "soft")
            with box(classes="track"):
                box(classes=one.kind).style(f"left: {left:.2f}%; width: {width:.2f}%").props(f'title="{one.said}"')
    attempts = [one for one in row.get("attempts") or () if one["started_s"] > 0]
    with box(classes="legend small soft num"):
        said("span", f"from admission to the end: {_seconds(span)}")
        said("span", f"generation: {_seconds(sum(max(0, one['ended_s'] - one['started_s']) for one in attempts))}")
        for one in attempts:
            if one["fault"]:
                said("span", f"attempt {one['number']} was repeated or given up: {one['fault']}")


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 60 else f"{duration(value)} min"
