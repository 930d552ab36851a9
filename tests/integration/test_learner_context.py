"""Context parallelism changes no gradient and no figure: 1 x 2, 2 x 2 and 1 x 4 ranks (groups x ranks a group) against one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from structlog.testing import capture_logs

from services.learner.distributed.ranks import Ranks
from services.learner.policy.model import load_policy
from sluice.errors import ConfigError
from tests.integration import context_rank
from tests.integration.learner_rank import run_job
from tests.integration.test_learner_layouts import _write as write_family
from tests.integration.test_learner_ranks import Figures, _gradient, _padded_gradient
from tests.unit.learner.learner_cases import make_config, write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MESHES = {"1x2": 2, "2x2": 2, "1x4": 4}
"""Groups x ranks a group: ranks a group."""

PADDED = {0: "token-mean", 1: "token-mean", 2: "seq-mean-token-mean"}
"""The jobs that a padded batch in float64 knows, and their aggregation modes."""

_ALGORITHMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"max_tokens_per_micro_batch": 10_000}),
    ({}, {"max_tokens_per_micro_batch": 40, "share_prompts": "never", "gradient_checkpointing": True}),
    ({"loss_agg_mode": "seq-mean-token-mean"}, {"reshard_after_forward": False}),
    ({"loss_mode": "gspo"}, {}),
    (
        {
            "proximal": "recompute",
            "rollout_correction": {"rollout_is": "sequence", "rollout_rs": "geometric", "rollout_rs_threshold": 1.4},
        },
        {},
    ),
    (
        {
            "loss_mode": "reinforce",
            "ess_scaling": True,
            "rollout_correction": {"rollout_is": "sequence", "opsm_delta": 0.1},
        },
        {},
    ),
]
"""Shared prompts and whole sequences, and every kind of sum over a sequence, in several micro-batches but for the first."""

ADAPTERS, SINKS = len(_ALGORITHMS), len(_ALGORITHMS) + 1
"""Other models, with the settings of the second job."""

EPISODES = len(_ALGORITHMS) + 2
"""Observed tokens and split episodes, with every kind of sum over a sample at once."""

TRAINED = {"1x2": (0, 1, 2, 3, 4, 5, ADAPTERS, EPISODES), "2x2": (0, 4, EPISODES), "1x4": (1, SINKS)}
"""The jobs of each mesh: ranks cost more time than what they find."""


def _jobs(models: Sequence[dict[str, Any]] = (), *, ranks: int, context: int) -> list[dict[str, Any]]:
    """One update over four groups of four samples with 1 to 24 tokens."""
    jobs = []
    for algorithm, learner in _ALGORITHMS:
        config = {
            "algorithm": {"overlong_filtering": True} | algorithm,
            "learner": {"mini_batch_size": 4, "logprob_chunk_tokens": 9, "max_tokens_per_micro_batch": 40}
            | {"context_parallel_size": context, **learner},
            "rollout": {"n": 4, "temperature": 0.7},
            "launch": {"learner_nproc_per_node": ranks},
        }
        jobs.append({"until": 1, "groups": 4, "n": 4, "config": config})
    of_models = [jobs[1] | {"config": jobs[1]["config"] | {"model": model}} for model in models]
    correction = {"rollout_is": "sequence", "rollout_rs": "geometric", "rollout_rs_threshold": 3.0}
    sums = {"loss_mode": "gspo", "proximal": "recompute", "rollout_correction": correction}
    episodes = jobs[-1] | {"episodes": True, "config": jobs[-1]["config"] | {"algorithm": sums}}
    return [*jobs, *of_models, episodes]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four heads over two key-value heads, which four ranks have to repeat; calm, so that float32 keeps seven digits."""
    return write_tiny_model(tmp_path_factory.mktemp("four-heads"), heads=4, kv_heads=2, initializer_range=0.1)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where ranks leave what they found."""
    return tmp_path_factory.mktemp("context")


@pytest.fixture(scope="module")
def models(model: Path, out: Path) -> list[dict[str, Any]]:
    """Adapters, and attention sinks with a sliding window."""
    sinks = write_family(out / "gpt_oss", "gpt_oss")
    return [
        {"dtype": "float32", "path": str(model), "lora_rank": 2, "lora_alpha": 8},
        {"dtype": "float32", "path": str(sinks)},
    ]


@pytest.fixture(scope="module")
def one(model: Path, models: list[dict[str, Any]], alone: Ranks) -> list[Figures]:
    """What one rank trains."""
    return [run_job(model, job, alone) for job in _jobs(models, ranks=1, context=1)]


@pytest.fixture(scope="module")
def found(model: Path, models: list[dict[str, Any]], out: Path) -> dict[str, dict[int, Figures]]:
    """What each mesh trains, by the number of the job."""
    jobs = {mesh: _jobs(models, ranks=2 if mesh == "1x2" else 4, context=size) for mesh, size in MESHES.items()}
    chosen = {mesh: [jobs[mesh][index] for index in indices] for mesh, indices in TRAINED.items()}
    saved = jobs["1x2"][0] | {"save": str(out / "checkpoints")}
    figures = context_rank.on_ranks(model, out / "two", [*chosen["1x2"], saved], ranks=2)[:-1]
    figures += context_rank.on_ranks(model, out / "four", [*chosen["2x2"], *chosen["1x4"]], ranks=4)
    in_order = iter(figures)
    return {mesh: {index: next(in_order) for index in indices} for mesh, indices in TRAINED.items()}


def _apart(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


@pytest.mark.parametrize("mesh", MESHES)
def test_gradients_are_those_of_one_rank_and_of_a_padded_batch(
    mesh: str, model: Path, one: list[Figures], found: dict[str, dict[int, Figures]]
) -> None:
    for index, ours in found[mesh].items():
        assert _apart(_gradient(ours), _gradient(one[index])) < 1e-6, index
        assert bool(ours["metric/learner/prompt_tokens_saved"]) == (index not in (1, ADAPTERS, SINKS, EPISODES)), index
    for index in PADDED.keys() & found[mesh].keys():
        assert _apart(_gradient(found[mesh][index]), _padded_gradient(model, mode=PADDED[index])) < 1e-6, index


@pytest.mark.parametrize("mesh", MESHES)
def test_every_token_counts_once_in_every_figure(
    mesh: str, one: list[Figures], found: dict[str, dict[int, Figures]]
) -> None:
    for index, ours in found[mesh].items():
        theirs = one[index]
        kept = ("metric/loss/", "metric/mismatch/", "metric/learner/trained_tokens", "metric/learner/updates")
        names = {name for name in theirs if name.startswith(kept)}
        assert names == {name for name in ours if name.startswith(kept)}
        assert len(names) > 20
        for name in names:
            assert ours[name] == pytest.approx(theirs[name], rel=2e-5, abs=1e-7), (index, name)
        for name in ("example/log_ratios", "example/entropies"):
            assert np.allclose(ours[name], theirs[name], rtol=0, atol=1e-5, equal_nan=True), (index, name)


def test_a_checkpoint_of_a_group_of_two_goes_on_on_one_rank(
    model: Path, alone: Ranks, found: dict[str, dict[int, Figures]], out: Path
) -> None:
    job = _jobs(ranks=1, context=1)[0] | {"until": 2}
    checkpoint = str(out / "checkpoints" / "step-1")
    ours, theirs = run_job(model, job | {"load": checkpoint}, alone), run_job(model, job, alone)
    assert _apart(ours["weights"], theirs["weights"]) < 1e-5


def test_slices_that_differ_are_refused_on_every_rank_and_nobody_waits(
    model: Path, found: dict[str, dict[int, Figures]], out: Path
) -> None:
    said = (out / "two" / "refusals.txt").read_text().splitlines()
    assert len(said) == 2
    for line in said:
        assert line.startswith(f"learner.context_parallel_size: must be 1 for {model} (Qwen3ForCausalLM), got 2; ")
        assert "slices differ by" in line


def test_ranks_that_do_not_divide_and_heads_are_refused_before_anything_is_loaded(model: Path, alone: Ranks) -> None:
    def refusal(**learner: Any) -> str:
        config = make_config(model, learner=learner, launch={"learner_nproc_per_node": 6})
        with capture_logs() as logs, pytest.raises(ConfigError) as caught:
            load_policy(config, alone)
        assert logs == []
        return str(caught.value)

    assert refusal(context_parallel_size=2) == "learner.context_parallel_size: must divide the learner's 1 ranks, got 2"
    assert refusal(context_parallel_size=3) == (
        f"learner.context_parallel_size: must divide the 4 attention heads of {model}, got 3; with 6 ranks of the learner: 1, 2"
    )
