"""A strictly synchronous run of the real services is the plain single-process DAPO, update for update."""

import asyncio
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from services.coordinator.storage.run_files import RunFiles
from services.coordinator.wire.messages import ZstdGroups
from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.rpc.arrays import unpack_floats, unpack_ids
from sluice.v1 import common_pb2
from tests.e2e.conftest import until
from tests.reference_dapo import ReferenceGroup, ReferenceSample, ReferenceUpdate, reference_update

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]

STEPS = 2


def test_two_ranks_without_staleness_reproduce_the_references_losses_and_weights(
    start_run, base_model: Path, tmp_path: Path
) -> None:
    run = start_run(
        "coordinator.max_staleness=0",
        "launch.learner_nproc_per_node=2",
        "rollout.engine=transformers",
        *("data.train_batch_size=8", "learner.mini_batch_size=4"),
        f"run.total_steps={STEPS + 1}",
        f"learner.export_every_steps={STEPS}",
        "learner.max_tokens_per_micro_batch=700",
        *("eval.every_steps=0", "eval.prompts=8", "eval.n=1", "eval.greedy=false"),
    )
    # A batch is removed when a checkpoint after it is complete: here, when the run ends.
    last = run.run_dir / "batches" / f"step-{STEPS:06d}.groups"
    until(run, last.exists)
    kept = shutil.copytree(run.run_dir / "batches", tmp_path / "kept" / "batches").parent
    assert run.wait(timeout_s=300) == 0, run.output()

    config = load_config(run.run_dir / "config.yaml")
    model = AutoModelForCausalLM.from_pretrained(base_model, dtype=torch.float32)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    by_step = list(_reference_steps(model, config, kept))

    lines = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "step"][:STEPS]
    for line, updates in zip(steps, by_step, strict=True):
        assert line["staleness/age_max_steps"] == 0
        assert line["learner/updates"] == len(updates) == 2
        assert line["loss/policy"] == pytest.approx(sum(u.loss for u in updates) / 2, abs=1e-5)
        assert line["loss/grad_norm"] == pytest.approx(sum(u.grad_norm for u in updates) / 2, rel=1e-3)

    trained = load_file(run.run_dir / "exports" / f"step-{STEPS}" / "model.safetensors")
    for name, parameter in model.named_parameters():
        moved = (parameter - before[name]).norm()
        apart = (trained[name] - parameter).norm()
        # AdamW's first updates are signs: where a gradient is all rounding, theirs may differ. Measured: 5e-5 at most.
        assert apart < 0.01 * moved, f"{name}: {apart / moved:.1e} of the way that it moved"


def _reference_steps(model: torch.nn.Module, config: Config, folder: Path) -> Iterator[list[ReferenceUpdate]]:
    """Trains the model on the run's own batches, which are in `folder`."""
    learner, algorithm = config.learner, config.algorithm
    optimizer = torch.optim.AdamW(model.parameters(), betas=learner.betas, weight_decay=learner.weight_decay)
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = learner.lr * (step + 1) / learner.warmup_steps
        yield reference_update(
            model,
            optimizer,
            _groups(folder, step),
            mini_batch_size=config.mini_batch_size,
            temperature=config.rollout.temperature,
            clip_ratio_low=algorithm.clip_ratio_low,
            clip_ratio_high=algorithm.clip_ratio_high,
            clip_ratio_c=algorithm.clip_ratio_c,
            loss_agg_mode=algorithm.loss_agg_mode,
            norm_adv_by_std=algorithm.norm_adv_by_std_in_grpo,
            grad_clip=learner.grad_clip,
        )


def _groups(folder: Path, step: int) -> list[ReferenceGroup]:
    batch = asyncio.run(RunFiles(folder).read_batch(step))
    codec = ZstdGroups()
    return [_group(codec.decode(payload)) for payload in batch.payloads]


def _group(message: common_pb2.Group) -> ReferenceGroup:
    samples = [
        ReferenceSample(
            completion_ids=unpack_ids(sample.token_ids).tolist(),
            rollout_logprobs=unpack_floats(sample.logprobs).tolist(),
            reward=reward.shaped_reward,
            truncated=sample.finish_reason == common_pb2.FINISH_REASON_LENGTH,
        )
        for sample, reward in zip(message.samples, message.rewards, strict=True)
    ]
    return ReferenceGroup(prompt_ids=unpack_ids(message.prompt.token_ids).tolist(), samples=samples)
