"""The same batch gives the same gradient on any number of ranks, however it is cut, and it is that of the reference."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from structlog.testing import capture_logs
from transformers import AutoModelForCausalLM

from services.learner.distributed.ranks import Ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.training import sharing
from services.learner.training.train_step import Trainer
from tests.integration.learner_rank import on_ranks, run_job
from tests.reference_dapo import (
    ReferenceVariant,
    reference_advantages,
    reference_aggregate,
    reference_token_losses,
    reference_update,
)
from tests.unit.learner.learner_cases import as_reference, make_batch, make_config, make_episodes, write_tiny_model

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

MODES = ("token-mean", "seq-mean-token-sum", "seq-mean-token-mean", "seq-mean-token-sum-norm")
DAPO = ReferenceVariant()
Figures = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def calm_model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its logits are small enough that float32 keeps seven digits of the gradient."""
    return write_tiny_model(tmp_path_factory.mktemp("calm"), initializer_range=0.1)


@pytest.fixture(scope="module")
def by_two(
    learner_model: Path, calm_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Figures]]:
    """All that two ranks train here."""
    reference = [
        _job(max_tokens=40),
        _job(mode="seq-mean-token-mean", filtering=True),
        _variant_job(RECOMPUTED, max_tokens=40),
        _variant_job({"loss_mode": "gspo"}, max_tokens=40),
        _variant_job(LATE, max_tokens=40),
    ]
    jobs = {
        "reference": reference,
        "episodes": _episode_jobs(),
        "layouts": _layout_jobs(calm_model_path, SEVERAL),
        "memory": _memory_jobs(),
    }
    return _at_one_go(learner_model, tmp_path_factory.mktemp("two") / "out", jobs, ranks=2)


@pytest.fixture(scope="module")
def by_three(
    learner_model: Path, calm_model_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Figures]]:
    """All that three ranks train here."""
    reference = [_job(max_tokens=1), _job(groups=4, n=2, max_tokens=10_000), _job(groups=2, poisoned=True)]
    jobs = {"reference": reference, "layouts": _layout_jobs(calm_model_path, SEVERAL)}
    return _at_one_go(learner_model, tmp_path_factory.mktemp("three") / "out", jobs, ranks=3)


def _at_one_go(
    model: Path, out: Path, jobs: dict[str, list[dict[str, Any]]], *, ranks: int
) -> dict[str, list[Figures]]:
    """Figures of the jobs by name; starting ranks takes longer than training."""
    found = iter(on_ranks(model, out, [job for some in jobs.values() for job in some], ranks=ranks))
    return {name: [next(found) for _ in some] for name, some in jobs.items()}


def _job(*, mode: str = "token-mean", max_tokens: int = 64, filtering: bool = False, **more: Any) -> dict[str, Any]:
    learner = {"mini_batch_size": 3, "max_tokens_per_micro_batch": max_tokens, "lr": 1e-2, "warmup_steps": 2}
    algorithm = {"loss_agg_mode": mode, "overlong_filtering": filtering}
    config = {"algorithm": algorithm, "learner": learner | {"weight_decay": 0.01}}
    return {"until": 1, "groups": 5, "n": 3, "config": config, **more}


@cache
def _reference(
    learner_model: Path,
    *,
    mode: str = "token-mean",
    filtering: bool = False,
    groups: int = 5,
    n: int = 3,
    variant: ReferenceVariant = DAPO,
    episodes: bool = False,
) -> Figures:
    """Gradients and figures of the last update of the plain single-process reference."""
    config = make_config(learner_model)
    model = AutoModelForCausalLM.from_pretrained(learner_model, dtype=torch.float32)
    matrices = [p for p in model.parameters() if p.ndim > 1]
    gains = [p for p in model.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": gains, "weight_decay": 0.0}],
        lr=config.learner.lr / 2,
        betas=config.learner.betas,
    )
    updates = reference_update(
        model,
        optimizer,
        as_reference((make_episodes if episodes else make_batch)(groups=groups, n=n)),
        mini_batch_size=3,
        temperature=config.rollout.temperature,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=10.0,
        loss_agg_mode=mode,
        norm_adv_by_std=True,
        grad_clip=config.learner.grad_clip,
        loss_scale_factor=16.0,
        overlong_filtering=filtering,
        variant=variant,
    )
    found = {f"grad/{name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    found["loss"] = np.mean([update.loss for update in updates])
    found["grad_norm"] = np.mean([update.grad_norm for update in updates])
    return found


def _assert_equal(ours: Figures, theirs: Figures) -> None:
    assert ours["metric/learner/updates"] == 2
    assert ours["metric/loss/policy"] == pytest.approx(theirs["loss"], abs=2e-6)
    assert ours["metric/loss/grad_norm"] == pytest.approx(theirs["grad_norm"], rel=1e-4)
    for name in (name for name in theirs if name.startswith("grad/")):
        assert np.allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6), name


@pytest.mark.parametrize(
    ("mode", "max_tokens"), [*((mode, 24) for mode in MODES), ("token-mean", 1), ("token-mean", 10_000)]
)
def test_two_updates_equal_the_plain_reference_however_the_batch_is_cut(
    learner_model: Path, alone: Ranks, mode: str, max_tokens: int
) -> None:
    ours = run_job(learner_model, _job(mode=mode, max_tokens=max_tokens, filtering=True), alone)
    _assert_equal(ours, _reference(learner_model, mode=mode, filtering=True))


VARIANTS = [
    {"loss_mode": "cispo"},
    {"loss_mode": "gspo"},
    {"proximal": "recompute", "rollout_is": "token", "rollout_is_threshold": 1.5},
    {"proximal": "recompute", "rollout_is": "sequence", "rollout_rs": "geometric", "rollout_rs_threshold": 1.4},
    {"rollout_rs": "token", "rollout_rs_threshold": 3.0},
    {"rollout_rs": "sequence", "rollout_rs_threshold": 50.0},
    {"loss_mode": "gspo", "proximal": "recompute", "rollout_is": "token", "rollout_rs": "token"},
    {"loss_mode": "cispo", "rollout_rs": "geometric", "rollout_rs_threshold": 1.5},
    {"loss_mode": "dppo_tv"},
    {"loss_mode": "dppo_kl", "adv_estimator": "maxrl"},
    {"loss_mode": "ipo", "rollout_rs": "token", "rollout_rs_threshold": 6.0},
    {"loss_mode": "sapo", "opsm_delta": 0.1},
    {"loss_mode": "reinforce", "rollout_is": "token", "rollout_is_threshold": 1.5},
    {"proximal": "recompute", "rollout_is": "token", "opsm_delta": 0.1, "rollout_rs": "geometric"},
    {"ess_scaling": True},
    {"loss_mode": "reinforce", "rollout_is": "sequence", "opsm_delta": 0.1, "ess_scaling": True},
]


def _variant_job(variant: dict[str, Any], **more: Any) -> dict[str, Any]:
    job = _job(**more)
    correction = {name: value for name, value in variant.items() if name.startswith(("rollout_", "opsm_"))}
    top = {name: value for name, value in variant.items() if name not in correction}
    job["config"]["algorithm"] |= top | {"rollout_correction": correction}
    return job


RECOMPUTED, LATE = VARIANTS[3], VARIANTS[-1]


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(map(str, v.values())))
def test_every_variant_and_correction_equals_the_plain_reference(
    learner_model: Path, alone: Ranks, variant: dict[str, Any]
) -> None:
    job = _variant_job(variant, max_tokens=40)
    job["config"]["learner"]["logprob_chunk_tokens"] = 7
    ours = run_job(learner_model, job, alone)
    _assert_equal(ours, _reference(learner_model, variant=ReferenceVariant(**variant)))
    plain = _reference(learner_model)
    assert not all(np.allclose(ours[name], plain[name]) for name in plain if name.startswith("grad/"))


def test_two_ranks_equal_the_reference(learner_model: Path, by_two: dict[str, list[Figures]]) -> None:
    plain, filtered, corrected, gspo, late = by_two["reference"]
    _assert_equal(plain, _reference(learner_model))
    _assert_equal(filtered, _reference(learner_model, mode="seq-mean-token-mean", filtering=True))
    _assert_equal(corrected, _reference(learner_model, variant=ReferenceVariant(**RECOMPUTED)))
    _assert_equal(gspo, _reference(learner_model, variant=ReferenceVariant(loss_mode="gspo")))
    _assert_equal(late, _reference(learner_model, variant=ReferenceVariant(**LATE)))


KEPT = {"loss_mode": "reinforce", "rollout_is": "sequence", "rollout_rs": "geometric", "rollout_rs_threshold": 3.0}
"""Weights of the current weights, without the samples whose weights are next to nothing."""

EPISODES = [
    ({}, {"max_tokens": 40}),
    ({}, {"mode": "seq-mean-token-mean", "filtering": True}),
    (RECOMPUTED | {"rollout_rs_threshold": 3.0}, {"max_tokens": 40}),
    ({"loss_mode": "gspo"}, {"max_tokens": 40}),
    ({"rollout_rs": "sequence", "rollout_rs_threshold": 1000.0}, {"max_tokens": 40}),
    ({"opsm_delta": 0.1, "ess_scaling": True}, {"max_tokens": 40}),
    (KEPT, {"max_tokens": 40}),
]
"""Every kind of sum over a sample: the sequences of a split one are in several micro-batches, on two ranks."""


def _episode_jobs() -> list[dict[str, Any]]:
    return [_variant_job(variant, episodes=True, **more) for variant, more in EPISODES]


@pytest.mark.parametrize("ranks", ["alone", "by_two"])
def test_episodes_equal_the_reference(learner_model: Path, ranks: str, request: pytest.FixtureRequest) -> None:
    """Observed tokens are context alone; the sequences of a split episode are one sample."""
    given = request.getfixturevalue(ranks)
    for index, (job, (variant, more)) in enumerate(zip(_episode_jobs(), EPISODES, strict=True)):
        ours = given["episodes"][index] if isinstance(given, dict) else run_job(learner_model, job, given)
        what = {name: value for name, value in more.items() if name != "max_tokens"}
        _assert_equal(ours, _reference(learner_model, variant=ReferenceVariant(**variant), episodes=True, **what))
        trained = [s for s in make_episodes(groups=5, n=3).sequences if not (s.truncated and "filtering" in more)]
        assert ours["metric/learner/trained_tokens"] == sum(s.sampled_tokens for s in trained)
        known, first = np.isfinite(ours["example/entropies"]), make_episodes(groups=5, n=3).groups[0].sequences
        assert known.tolist() == [
            not (s.truncated and "filtering" in more) for s in first for _ in range(s.sampled_tokens)
        ]


LAYOUTS = {
    "1x16": {"max_tokens_per_micro_batch": 10_000},
    "4x4": {"max_tokens_per_micro_batch": 80},
    "16x1": {"max_tokens_per_micro_batch": 1},
    "plain": {"max_tokens_per_micro_batch": 80, "share_prompts": "never"},
}


CROSS = [(mode, layout) for mode in MODES for layout in LAYOUTS if mode == "token-mean" or layout == "4x4"]
"""Every mode and every layout: a mode is weights of sequences, which are made before anything is laid out."""
SEVERAL = [(mode, layout) for mode, layout in CROSS if mode == "token-mean" and layout != "16x1"]
"""What several ranks train; another mode, and a sequence a micro-batch, they train as the reference does."""


def _layout_jobs(model: Path, cases: Sequence[tuple[str, str]] = CROSS) -> list[dict[str, Any]]:
    """One update over four groups of four, by aggregation mode and layout."""
    of_model = {"path": str(model), "dtype": "float32"}
    jobs = []
    for mode, layout in cases:
        algorithm = {"loss_agg_mode": mode, "overlong_filtering": True}
        learner = {"mini_batch_size": 4, "logprob_chunk_tokens": 9, **LAYOUTS[layout]}
        config = {"model": of_model, "algorithm": algorithm, "learner": learner}
        config["rollout"] = {"n": 4, "temperature": 0.7}
        jobs.append({"until": 1, "groups": 4, "n": 4, "config": config})
    return jobs


def _gradient(figures: Figures) -> np.ndarray:
    return np.concatenate([figures[name].reshape(-1) for name in sorted(figures) if name.startswith("grad/")])


@cache
def _padded_gradient(learner_model: Path, *, mode: str) -> np.ndarray:
    """The stock model in float64 on one right-padded batch with an attention mask, and autograd through all its logits."""
    model = AutoModelForCausalLM.from_pretrained(learner_model, dtype=torch.float64)
    groups = as_reference(make_batch(groups=4, n=4))
    samples = [
        (group.prompt_ids, sample, advantage)
        for group in groups
        for sample, advantage in zip(
            group.samples, reference_advantages([s.reward for s in group.samples], norm_by_std=True), strict=True
        )
    ]
    rows = [torch.tensor(prompt + sample.completion_ids) for prompt, sample, _ in samples]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logprobs = torch.log_softmax(model(input_ids=ids, attention_mask=mask).logits / 0.7, -1)
    losses = []
    for row, (prompt, sample, advantage) in enumerate(samples):
        if not sample.truncated:
            before = logprobs[row, len(prompt) - 1 : len(rows[row]) - 1]
            chosen = before.gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
            rollout = torch.tensor(sample.rollout_logprobs, dtype=torch.float64)
            losses.append(reference_token_losses(chosen, rollout, advantage, 0.2, 0.28, 10.0))
    reference_aggregate(losses, mode, 16.0).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    return _gradient({f"grad/{name}": p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None})


@cache
def _padded_example(learner_model: Path) -> np.ndarray:
    """float64[2, A] of the first group: log ratio and entropy of each token, by all logits; NaN for a truncated sample."""
    model, columns = AutoModelForCausalLM.from_pretrained(learner_model, dtype=torch.float64), []
    group = as_reference(make_batch(groups=4, n=4))[0]
    for sample in group.samples:
        ids = torch.tensor([group.prompt_ids + sample.completion_ids])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(input_ids=ids).logits[0, len(group.prompt_ids) - 1 : -1] / 0.7, -1)
        chosen = logprobs.gather(-1, torch.tensor(sample.completion_ids)[:, None])[:, 0]
        found = torch.stack(
            [chosen - torch.tensor(sample.rollout_logprobs, dtype=torch.float64), -(logprobs.exp() * logprobs).sum(-1)]
        )
        columns.append(found * (float("nan") if sample.truncated else 1))
    return torch.cat(columns, dim=1).numpy()


def _assert_one_gradient(learner_model: Path, found: list[Figures], cases: Sequence[tuple[str, str]] = CROSS) -> None:
    """The error is relative to the gradient's norm: what is left of 1e-6 is float32's rounding."""
    for (mode, layout), figures in zip(cases, found, strict=True):
        padded = _padded_gradient(learner_model, mode=mode)
        error = np.linalg.norm(_gradient(figures) - padded) / np.linalg.norm(padded)
        assert error < 1e-6, (mode, layout, error)
        example = np.stack([figures["example/log_ratios"], figures["example/entropies"]])
        assert np.isnan(example).any()
        assert np.allclose(example, _padded_example(learner_model), rtol=0, atol=1e-5, equal_nan=True), layout
        assert bool(figures["metric/learner/prompt_tokens_saved"]) == (layout in ("1x16", "4x4")), layout


def test_the_gradient_does_not_depend_on_micro_batches_or_packing(calm_model_path: Path, alone: Ranks) -> None:
    found = [run_job(calm_model_path, job, alone) for job in _layout_jobs(calm_model_path)]
    _assert_one_gradient(calm_model_path, found)


@pytest.mark.parametrize("ranks", ["by_two", "by_three"])
def test_the_gradient_does_not_depend_on_the_number_of_ranks(
    calm_model_path: Path, ranks: str, request: pytest.FixtureRequest
) -> None:
    _assert_one_gradient(calm_model_path, request.getfixturevalue(ranks)["layouts"], SEVERAL)


def test_three_ranks_equal_the_reference_with_more_ranks_than_work_and_skip_a_bad_update_together(
    learner_model: Path, by_three: dict[str, list[Figures]]
) -> None:
    even, tiny, poisoned = by_three["reference"]
    _assert_equal(even, _reference(learner_model, mode="token-mean", filtering=False))
    _assert_equal(tiny, _reference(learner_model, mode="token-mean", filtering=False, groups=4, n=2))
    assert (poisoned["metric/learner/updates"], poisoned["metric/learner/skipped_updates"]) == (0, 1)
    assert np.isfinite(poisoned["weights"]).all()
    assert np.isnan(poisoned["example/log_ratios"]).any()


@pytest.mark.parametrize(
    "setting",
    [
        {"gradient_checkpointing": True},
        {"logprob_chunk_tokens": 7},
        {"fp32_lm_head": True},
        {"reshard_after_forward": False},
        {"cpu_offload": True},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_settings_of_memory_change_no_number(learner_model: Path, alone: Ranks, setting: dict[str, Any]) -> None:
    plain, frugal = _job(max_tokens=40, until=2), _job(max_tokens=40, until=2)
    frugal["config"]["learner"] |= setting
    ours, theirs = (run_job(learner_model, job, alone) for job in (frugal, plain))
    assert np.allclose(ours["weights"], theirs["weights"], rtol=1e-4, atol=1e-6)


def _memory_jobs() -> list[dict[str, Any]]:
    jobs = [_job(max_tokens=20) for _ in range(4)]
    jobs[1]["config"]["learner"] |= {"reshard_after_forward": False}
    jobs[2]["config"]["learner"] |= {"cpu_offload": True, "gradient_checkpointing": True}
    jobs[3]["config"]["algorithm"] |= {"proximal": "recompute"}
    jobs[3]["config"] |= {"coordinator": {"max_staleness": 0}}
    return jobs


def test_settings_of_memory_change_no_number_on_two_ranks(by_two: dict[str, list[Figures]]) -> None:
    plain, kept, offloaded, _ = by_two["memory"]
    for other in (kept, offloaded):
        assert np.allclose(other["weights"], plain["weights"], rtol=1e-4, atol=1e-6)


def test_one_seed_and_the_same_batches_give_the_same_bits(learner_model: Path, alone: Ranks) -> None:
    first, second = (run_job(learner_model, _job(until=3, max_tokens=40), alone) for _ in range(2))
    assert np.array_equal(first["weights"], second["weights"])


def test_bfloat16_layers_give_float32_gradients_close_to_those_of_float32_layers(
    learner_model: Path, alone: Ranks
) -> None:
    half, whole = (_layout_jobs(learner_model)[0] for _ in range(2))
    half["config"]["model"] = {"path": str(learner_model), "dtype": "bfloat16"}
    ours, theirs = (run_job(learner_model, job, alone) for job in (half, whole))
    assert all(ours[name].dtype == np.float32 for name in ours if name.startswith("grad/"))
    error = np.linalg.norm(_gradient(ours) - _gradient(theirs)) / np.linalg.norm(_gradient(theirs))
    assert 1e-4 < error < 0.1


def _trainer(learner_model: Path, ranks: Ranks) -> Trainer:
    config = make_config(learner_model)
    policy = load_policy(config, ranks)
    return Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)


def test_a_step_is_laid_out_with_whole_sequences_where_a_replay_asks_for_it(learner_model: Path, alone: Ranks) -> None:
    trainer = _trainer(learner_model, alone)
    saved = []
    for step, allowed in enumerate((False, True)):
        trainer.allow_sharing(allowed)
        saved.append(trainer.train(make_batch(step=step))["learner/prompt_tokens_saved"])
    assert saved[0] == 0 < saved[1]


def test_prompts_are_shared_no_more_once_the_two_forms_differ(
    learner_model: Path, alone: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = _trainer(learner_model, alone)
    monkeypatch.setattr(sharing, "FLOAT32_NATS", -1.0)
    with capture_logs() as logs:
        assert trainer.train(make_batch())["learner/prompt_tokens_saved"] == 0
    assert [log["event"] for log in logs] == ["prompts_not_shared"]
    assert trainer.train(make_batch(step=1))["learner/prompt_tokens_saved"] == 0
