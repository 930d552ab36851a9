"""Episodes for people: the ledger's row, the page of a group, samples.jsonl."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console

from services.coordinator.state.group import Group, Sample, Span, Turn
from services.coordinator.state.ledger_row import ledger_row
from services.coordinator.wire.messages import ZstdGroups
from sluice.environments import Message
from sluice.policy_version import PolicyVersion
from sluice.report.group_page import group_page
from sluice.report.group_texts import Texts, texts_of, texts_on_disk
from sluice.report.samples import print_samples, read_samples
from sluice.run_dir.ledger_schema import LEDGER_SCHEMA
from tests.unit.coordinator.fakes import FakePrompt, make_config, make_reward, make_sample

BEFORE = {"sample": 1, "rollout": "r0", "tokens": 3, "finish_reason": "stop", "versions": "", "status": "ok"}
"""A row of a run before there were episodes."""


def episode_and_answer() -> Group:
    """A group with one episode of two turns, 5 of its 9 tokens sampled, and one single answer of 3."""
    said = Message(role="tool", content="\x1b[2J forty\ntwo", name="calc")
    first = Turn(
        start=0, end=3, finish_reason="length", rollout_id="r0", seed=1, text="calc(6*7)", tools=("calc", "calc"),
        answers=(said,), generated_s=0.5, answered_s=1.25,
    )  # fmt: skip
    last = Turn(start=7, end=9, finish_reason="stop", rollout_id="r1", seed=2, text="it is 42", generated_s=0.25)
    spans = [(1, 0, 2), (2, 2, 3), (2, 7, 9)]
    episode = Sample(
        index=0,
        token_ids=np.arange(9, dtype=np.int32),
        logprobs=np.zeros(9, np.float32),
        spans=tuple(Span(version=PolicyVersion(lineage="a", number=n), start=s, end=e) for n, s, e in spans),
        finish_reason="stop",
        text="it is 42",
        rollout_id="r1",
        seed=1,
        turns=(first, last),
    )
    group = Group(group_id="run-0000000", admission=0, prompt=FakePrompt(prompt_id="p"), cursor="")
    group.samples = {0: episode, 1: make_sample(1, tokens=3)}
    group.rewards = [make_reward(1.0), make_reward(0.0)]
    return group


def test_a_row_counts_sampled_tokens_and_has_turns_tools_and_seconds_of_episodes_alone() -> None:
    row = ledger_row(episode_and_answer(), term="filtered_other")
    stored = pa.Table.from_pylist([row, row | {"completions": [BEFORE]}], schema=LEDGER_SCHEMA).to_pylist()
    episode, answer = stored[0]["completions"]
    names = ("tokens", "turns", "observed_tokens", "tools", "generated_s", "environment_s")
    assert [episode[name] for name in names] == [5, 2, 4, '{"calc": 2}', 0.75, 1.25]
    assert [answer[name] for name in names] == [3, None, None, None, None, None]
    assert stored[0]["tokens"] == sum(one["tokens"] for one in stored[0]["completions"]) == 8

    page = group_page(stored[0], config=make_config())
    assert "#  turns  observed  generating  environment  tools called\n  0      2         4      0.75 s" in page
    assert "1.25 s  calc x2\n" in page
    for older in (stored[1], stored[1] | {"completions": [dict(BEFORE) | _UNGRADED]}):
        assert "episodes" not in group_page(older, config=make_config())


_UNGRADED = dict.fromkeys(("raw_score", "acc", "overlong_penalty", "shaped_reward", "extracted", "detail"))


def test_an_episode_is_shown_turn_by_turn_from_a_payload_and_from_samples_jsonl(tmp_path: Path) -> None:
    group, codec = episode_and_answer(), ZstdGroups()
    payload = codec.encode(group)
    line: dict[str, Any] = codec.to_read(payload) | {"step": 4}
    assert [(one["tokens"], len(one.get("turns", ()))) for one in line["samples"]] == [(5, 2), (3, 0)]
    (tmp_path / "samples.jsonl").write_text(json.dumps(line) + "\n")
    from_payload, from_file = texts_of(codec.decode(payload)), texts_on_disk(tmp_path, group_id="run-0000000", step=4)
    assert isinstance(from_file, Texts)
    assert from_file.episodes == from_payload.episodes

    console = Console(record=True, width=240, file=io.StringIO())
    print_samples(console, read_samples(tmp_path), groups_shown=1, samples_shown=2)
    page = group_page(ledger_row(group, term="trained"), config=make_config(), texts=from_file)
    for shown in (page, console.export_text()):
        for part in (
            "turn 0: 3 tokens in 0.5 s, r0 at version a1 a2; called calc, calc; cut",
            "calc(6*7)",
            "the environment, in 1.25 s",
            "tool calc: ␛[2J forty",
            "turn 1: 2 tokens in 0.25 s, r1 at version a2",
            "it is 42",
        ):
            assert part in shown, part
