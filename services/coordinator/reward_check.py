"""Before training: gold answers must score right, empty and garbage answers wrong. A grader that fails this would train
the model on noise for hours."""

from collections.abc import Sequence

import numpy as np

from services.coordinator.clients import gold_forms
from services.coordinator.fleet import Fleet, Role
from services.coordinator.model import PromptLike, Sample, Span, Version
from services.coordinator.ports import RewardClient
from sluice.errors import ConfigError, NotReady

GARBAGE = ("", "?", "I do not know.")


async def check_reward(*, fleet: Fleet, rewards: RewardClient, prompts: Sequence[PromptLike], timeout_s: float) -> None:
    """Raises ConfigError naming the prompt, the gold answer and what the grader said."""
    members = fleet.of(Role.REWARD)
    if not members:
        raise NotReady("reward check: no reward service is ready")
    for prompt in prompts:
        texts = [*gold_forms(prompt.ground_truth), *GARBAGE]
        results = await rewards.score(
            members[0],
            group_id=f"check-{prompt.prompt_id}",
            prompt=prompt,
            samples=[_as_sample(index, text) for index, text in enumerate(texts)],
            timeout_s=timeout_s,
        )
        gold, garbage = results[: -len(GARBAGE)], results[-len(GARBAGE) :]
        name = f"grader {gold[0].grader!r} for data_source {prompt.data_source!r}"
        if not any(result.graded and result.acc == 1 for result in gold):
            said = "; ".join(f"{result.status} {result.extracted or result.detail!r}" for result in gold[:2])
            raise ConfigError(
                f"reward check: {name} scores the gold answer {prompt.ground_truth[:80]!r} of prompt "
                f"{prompt.text[:80]!r} as wrong ({said}); fix the data's ground_truth or route the data_source to "
                "another grader with reward.routes"
            )
        if any(result.acc == 1 for result in garbage):
            raise ConfigError(
                f"reward check: {name} scores an empty or garbage answer to {prompt.text[:80]!r} as right; "
                "route the data_source to another grader with reward.routes"
            )


def _as_sample(index: int, text: str) -> Sample:
    span = Span(version=Version(lineage="", number=0), start=0, end=1)
    one = np.zeros(1)
    return Sample(
        index=index,
        token_ids=one.astype(np.int32),
        logprobs=one.astype(np.float32),
        spans=(span,),
        finish_reason="stop",
        text=text,
        rollout_id="",
        seed=0,
    )
