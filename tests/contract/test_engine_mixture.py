"""Mixtures of experts: what the learner publishes, an engine samples from, though transformers joins what files keep apart.

`python -m benchmarks.run mixtures` compares vLLM with all of the families, larger models and more samples.
"""

from pathlib import Path

import numpy as np
import pytest

from services.rollout.adapters.engine_environment import set_environment
from services.rollout.model_files import check_tensors, read_model

TOLERANCE_NATS = 1e-4


@pytest.mark.parametrize(
    ("family", "kind"),
    [
        *(pytest.param(family, "vllm", marks=pytest.mark.e2e) for family in ("qwen3_moe", "deepseek_v3")),
        *(
            pytest.param(family, "transformers", marks=pytest.mark.integration)
            for family in ("qwen3_moe", "mixtral", "olmoe", "deepseek_v3")
        ),
    ],
)
def test_an_engine_agrees_with_the_learner_before_and_after_a_push(family: str, kind: str, tmp_path: Path) -> None:
    set_environment(threads=1)  # before torch is imported
    from tests.learner_and_engine import Pair
    from tests.mixture_models import write_mixture

    folder = write_mixture(tmp_path / "model", family)
    pair = Pair(folder, kind=kind)
    try:
        before = pair.sample(seed=0)
        assert before.difference <= TOLERANCE_NATS
        pair.train_a_little()
        snapshot = pair.publish()
        check_tensors(snapshot.manifest, read_model(folder).tensors)
        stale = pair.sample(seed=0)
        pair.push(snapshot)
        after = pair.sample(seed=0)
    finally:
        pair.close()
    assert after.difference <= TOLERANCE_NATS < stale.difference / 100
    assert not np.array_equal(before.token_ids, after.token_ids)
