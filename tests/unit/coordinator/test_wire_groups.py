"""The codec of queue and batch files."""

import numpy as np
import pytest

from services.coordinator.state.group import Group, GroupFailed, Sample, Span, Turn
from services.coordinator.wire import messages as wire
from services.coordinator.wire.messages import ZstdGroups
from sluice.environments import Message, Score, ToolCall
from sluice.errors import SluiceError
from sluice.policy_version import PolicyVersion
from tests.unit.coordinator.fakes import FakePrompt, make_reward, make_sample


def test_a_group_larger_than_a_message_to_the_learner_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(group_id="r-0000000", admission=0, prompt=FakePrompt(prompt_id="p"), cursor="")
    group.samples, group.rewards = {0: make_sample(0, tokens=100)}, [make_reward(1.0)]
    body = ZstdGroups().decode(ZstdGroups().encode(group)).ByteSize()
    monkeypatch.setattr(wire, "LARGEST_GROUP_BYTES", body - 1)
    with pytest.raises(GroupFailed, match=f"too_large: r-0000000 has {body} bytes"):
        ZstdGroups().encode(group)


def test_an_episode_comes_back_from_the_queue_as_it_went() -> None:
    """Turns, observed tokens between them, a rewritten history, a score."""
    version = PolicyVersion(lineage="a", number=3)
    call = ToolCall(name="add", arguments_json='{"a": 1}', id="c1")
    common = {"finish_reason": "stop", "rollout_id": "r", "seed": 7, "text": "x"}
    turns = (
        Turn(start=0, end=3, tools=("add",), answers=(Message(role="tool", content="2", name="add"),), **common),
        Turn(start=5, end=7, answers=(Message(role="assistant", content="", tool_calls=(call,)),), **common),
        Turn(start=7, end=9, context=np.array([1, 2], np.int32), answered_s=0.5, **common),
    )
    sample = Sample(
        index=0,
        token_ids=np.arange(9, dtype=np.int32),
        logprobs=np.zeros(9, np.float32),
        spans=(Span(version=version, start=0, end=3), Span(version=version, start=5, end=9)),
        turns=turns,
        score=Score(score=0.5, acc=1.0, parts={"tools": 1.0}, extracted="2"),
        **common,
    )
    group = Group(group_id="r-0000000", admission=0, prompt=FakePrompt(prompt_id="p", environment="sums"), cursor="")
    group.samples, group.rewards = {0: sample}, [make_reward(1.0)]
    codec = ZstdGroups()
    back = wire.group_from(codec.decode(codec.encode(group)))
    assert back.prompt.environment == "sums"
    assert (back.response_tokens, back.samples[0].sampled_tokens) == (7, 7)
    assert back.samples[0].score == sample.score
    assert [(t.start, t.end, t.tools, t.answers, t.answered_s) for t in back.samples[0].turns] == [
        (t.start, t.end, t.tools, t.answers, t.answered_s) for t in turns
    ]
    assert back.samples[0].turns[0].context is None
    np.testing.assert_array_equal(back.samples[0].turns[2].context, [1, 2])
    stored = codec.decode(codec.encode(group)).samples[0]
    stored.spans[0].end_token = 4  # an observed token has no version
    with pytest.raises(
        SluiceError, match=r"turns \[\(0, 3\), \(5, 7\), \(7, 9\)\], version spans \[\(0, 4\), \(5, 9\)\]"
    ):
        wire.sample_from(stored)
