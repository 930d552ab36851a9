"""The samples of a group side by side: scores, and the text token by token."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from nicegui import ui

from sluice.report.figures import ABSENT, number
from sluice.report.group_page import advantages
from sluice.report.group_texts import Texts
from sluice.report.turns import ShownTurn
from sluice.ui.found_group import MOST_SAMPLES, Found
from sluice.ui.page import Page
from sluice.ui.parts import box, chip, panel, plain_table, said, text_block
from sluice.ui.shown_text import shown
from sluice.ui.token_text import TokenText

COLOURINGS = {
    "logprob": "log-probability",
    "entropy": "entropy",
    "ratio": "ratio",
    "version": "version",
    "advantage": "advantage",
    "none": "no colour",
}
_KEPT = ("entropy", "ratio")
"""Known of the groups in sample_tokens.jsonl alone."""

_LEGENDS = {
    "logprob": ("unlikely: 4 nats or more", "certain", "orange-only"),
    "entropy": ("certain", "undecided: 2 nats or more", "blue-only"),
    "ratio": ("÷ 1.3 or less likely than in the rollout", "× 1.3 or more likely", "both"),
    "version": ("oldest version of the sample", "newest", "both"),
    "advantage": ("advantage -2 or less", "+2 or more", "both"),
    "none": ("", "", ""),
}
"""What the ends of the scale mean, and which colours the scale has (page.css)."""

_ABSENT = (
    "Entropy and ratio are what the learner computed in the update that trained a token. They are kept for one group a step, "
    "the group in samples.jsonl; this is another one, or the run is of a version of Sluice that did not keep them."
)


def samples(page: Page, found: Found) -> None:
    completions = (found.row.get("completions") or ())[:MOST_SAMPLES]
    if not completions:
        with panel("Samples"):
            said("div", "The ledger has no samples of this group.", "soft")
        return
    colour = page.query.get("colour", "logprob")
    colour = colour if colour in COLOURINGS else "logprob"
    values = advantages(found.row, found.config)
    tokens: list[Any] = []
    with (
        panel("Samples", note=f"{len(completions)} of one prompt, {found.row['tokens']:,} tokens"),
        box(classes="filters"),
    ):
        if isinstance(found.tokens, str):
            said("span", found.tokens, "soft small")
        else:
            _colours(page, found.tokens, colour, tokens)
    with box(classes="samples"):
        for place, completion in enumerate(completions):
            _sample(found, place, completion, values[place], colour, tokens)


def _colours(page: Page, texts: Sequence[TokenText], colour: str, tokens: list[Any]) -> None:
    said("span", "tokens coloured by", "soft small")
    buttons: dict[str, Any] = {}
    has_figures = any(text.ratios is not None for text in texts)

    def explain(name: str) -> None:
        low, high, scale = _LEGENDS[name]
        bar.classes(replace=f"scale {scale}")
        ends[0].text, ends[1].text = low, high
        legend.set_visibility(bool(scale))
        absent.set_visibility(name in _KEPT and not has_figures)

    def paint(name: str) -> None:
        page.keep({"colour": name} if name != "logprob" else {})
        for one, button in buttons.items():
            button.props(f"aria-pressed={'true' if one == name else 'false'}")
        explain(name)
        for one in tokens:
            one._props["colour"] = name
            one.update()

    for name, label in COLOURINGS.items():
        buttons[name] = said("button", label, "quiet-button").props(
            f"type=button aria-pressed={'true' if name == colour else 'false'}"
        )
        buttons[name].on("click", lambda name=name: paint(name))
    with box(classes="small soft token-legend") as legend:
        low = said("span", "")
        bar = box("span", "scale")
        ends = (low, said("span", ""))
        said("span", "a token's figures stand at the pointer")
    absent = said("div", _ABSENT, "note-line small")
    explain(colour)


def _sample(
    found: Found, place: int, one: Mapping[str, Any], advantage: float | None, colour: str, tokens: list[Any]
) -> None:
    graded = one["raw_score"] is not None
    with box("article", "panel"):
        with box(classes="sample-head"):
            said("h3", f"Sample {one['sample']}")
            right = graded and (one["acc"] or 0) > 0
            chip(
                "✓ right" if right else "✗ wrong" if graded else one["status"] or "not graded",
                "good" if right else "warn",
            )
            if one["finish_reason"] == "length":
                chip("cut at the limit", "bad")
            said("span", f"{one['tokens']:,} tokens, {one['rollout']}", "soft small num")
        with box(classes="facts num"):
            for label, text in _facts(one, advantage):
                with box():
                    said("div", label, "label")
                    said("div", text)
        _parts(one)
        _completion(found, place, advantage, colour, tokens)


def _facts(one: Mapping[str, Any], advantage: float | None) -> list[tuple[str, str]]:
    def score(name: str) -> str:
        return ABSENT if one[name] is None else f"{one[name]:g}"

    facts = [
        ("raw score", score("raw_score")),
        ("overlong penalty", score("overlong_penalty")),
        ("shaped reward", score("shaped_reward")),
        ("advantage", ABSENT if advantage is None else f"{advantage:+.3f}"),
        ("versions of tokens", one["versions"].replace(" ", ", ")),
        ("grader read", shown(one["extracted"] or "", most=120).text or ABSENT),
        ("grader", one["grader"] or ABSENT),
    ]
    if one["detail"]:
        facts.append(("why", shown(one["detail"], most=200).text))
    if one.get("turns"):
        facts += [("turns", str(one["turns"])), ("observed tokens", f"{one['observed_tokens']:,}")]
        facts += [
            ("generating", f"{number(one['generated_s'], 2)} s"),
            ("environment", f"{number(one['environment_s'], 2)} s"),
        ]
    return facts


def _parts(one: Mapping[str, Any]) -> None:
    try:
        parts = json.loads(one.get("parts") or "{}")
    except ValueError:
        parts = {}
    if parts:
        plain_table(("part of the score", "value"), [(name, f"{value:g}") for name, value in parts.items()], right=(1,))


def _completion(found: Found, place: int, advantage: float | None, colour: str, tokens: list[Any]) -> None:
    if not isinstance(found.tokens, str) and place < len(found.tokens):
        text = found.tokens[place]
        element = ui.element("sl-tokens").classes("said mono").props('dir=auto tabindex=0 aria-label="completion"')
        element._props["colour"] = colour
        element._props["said"] = {
            "pieces": text.pieces,
            "logprobs": text.logprobs,
            "versions": text.versions,
            "ratios": text.ratios,
            "entropies": text.entropies,
            "advantage": advantage,
        }
        tokens.append(element)
        if text.left_out:
            said("div", f"the first {len(text.pieces):,} tokens; {text.left_out:,} more are not shown", "soft small")
        if isinstance(found.texts, Texts) and found.texts.episodes and found.texts.episodes[place]:
            with ui.element("details"):
                said("summary", "turn by turn", "small")
                _turns(found.texts.episodes[place])
    elif isinstance(found.texts, Texts) and place < len(found.texts.completions):
        if found.texts.episodes and found.texts.episodes[place]:
            _turns(found.texts.episodes[place])
        else:
            text_block(found.texts.completions[place])


def _turns(turns: Sequence[ShownTurn]) -> None:
    for number_, turn in enumerate(turns):
        said(
            "div",
            f"turn {number_}: {turn.tokens} tokens in {number(turn.generated_s, 2)} s, version {turn.versions}"
            + (f", called {', '.join(turn.tools)}" if turn.tools else ""),
            "soft small",
        ).style("margin-top: 8px")
        text_block(turn.text)
        for answer in turn.answers:
            said(
                "div",
                " ".join(filter(None, (answer.role, answer.name))) + f", in {number(turn.answered_s, 2)} s",
                "soft small",
            )
            text_block(answer.content)
