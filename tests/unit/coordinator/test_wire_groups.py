"""The codec of queue and batch files."""

import pytest

from services.coordinator.state.group import Group, GroupFailed
from services.coordinator.wire import messages as wire
from services.coordinator.wire.messages import ZstdGroups
from tests.unit.coordinator.fakes import FakePrompt, make_reward, make_sample


def test_a_group_larger_than_a_message_to_the_learner_fails_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    group = Group(group_id="r-0000000", admission=0, prompt=FakePrompt(prompt_id="p"), cursor="")
    group.samples, group.rewards = {0: make_sample(0, tokens=100)}, [make_reward(1.0)]
    body = ZstdGroups().decode(ZstdGroups().encode(group)).ByteSize()
    monkeypatch.setattr(wire, "LARGEST_GROUP_BYTES", body - 1)
    with pytest.raises(GroupFailed, match=f"too_large: r-0000000 has {body} bytes"):
        ZstdGroups().encode(group)
