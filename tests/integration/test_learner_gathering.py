"""A snapshot has the same bytes however many ranks hold the weights, and however they travel."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.forked import run_ranks
from tests.integration import gathering_rank
from tests.mixture_models import write_mixture
from tests.unit.learner.learner_cases import write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]


def _publish(model: Path, mixture: Path, out: Path, *, ranks: int) -> dict[str, Any]:
    run_ranks(gathering_rank.main, str(model), str(mixture), str(out), ranks=ranks, log=out.with_suffix(".log"))
    return json.loads(out.read_text())


def test_shards_even_uneven_and_empty_make_the_snapshot_that_whole_tensors_make(tmp_path: Path) -> None:
    # Of 3 ranks the last has 12 of 40 rows of the vocabulary, 10 of 32 of the MLP, 2 of 8 of the keys, none of LoRA's 4.
    model = write_tiny_model(tmp_path / "model")  # its head is tied
    mixture = write_mixture(tmp_path / "mixture", "qwen3_moe", layers=1)  # of its 6 experts each of 3 ranks has 2
    by_ranks = {ranks: _publish(model, mixture, tmp_path / f"{ranks}.json", ranks=ranks) for ranks in (1, 2, 3)}
    for found in by_ranks.values():
        for dtype, lora, ours, plain in found["digests"]:
            assert ours == plain, (dtype, lora)
    digests = [found["digests"] for found in by_ranks.values()]
    assert digests[0] == digests[1] == digests[2]
    assert len({ours for _, _, ours, _ in digests[0]}) == 7  # adapters alone are float32 either way
    for ranks in (2, 3):
        refusal = "version a1 is not published: model.norm.weight holds weights that are not finite"
        assert by_ranks[ranks]["refusals"] == [refusal] * ranks
