"""LoRA in the learner: a plain PEFT model trained by the reference is what it is held to, on one rank and on two."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.checkpoint.export import export_version
from services.learner.distributed.ranks import Ranks
from services.learner.policy.lora import export_adapter, whole_model
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.snapshot.pack import SnapshotPacker
from services.learner.training.train_step import Trainer
from sluice.config.schema import Config
from sluice.errors import ConfigError, SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Snapshot
from sluice.weights.tensors import named_tensors
from tests.integration.learner_rank import on_ranks
from tests.power_failure import Disk
from tests.reference_dapo import reference_update
from tests.unit.learner.learner_cases import as_reference, make_batch, make_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(240)]

RANK, ALPHA, SEED = 3, 12.0, 5
LEARNER = {"mini_batch_size": 3, "max_tokens_per_micro_batch": 40, "lr": 1e-2, "warmup_steps": 2, "weight_decay": 0.01}
VERSION = PolicyVersion(lineage="a", number=1)


def _sections(
    *, lora: str = "merged", learner: dict[str, Any] | None = None, **model: Any
) -> dict[str, dict[str, Any]]:
    return {
        "run": {"seed": SEED},
        "model": {"lora_rank": RANK, "lora_alpha": ALPHA, **model},
        "learner": LEARNER | (learner or {}),
        "weights": {"lora": lora},
    }


def _job(**settings: Any) -> dict[str, Any]:
    return {"until": 1, "groups": 5, "n": 3, "config": _sections(**settings)}


def _peft_reference(learner_model: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Weights, by the base model's names, and last gradients after step 0 of stock PEFT on one process."""
    config = make_config(learner_model)
    torch.manual_seed(SEED)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_pretrained(learner_model, dtype=torch.float32),
        peft.LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules="all-linear", task_type="CAUSAL_LM"),  # type: ignore[arg-type]
    )
    trained = [p for p in model.parameters() if p.requires_grad]
    reference_update(
        model,
        torch.optim.AdamW(trained, lr=LEARNER["lr"] / 2, betas=config.learner.betas, weight_decay=0.01),
        as_reference(make_batch(groups=5, n=3)),
        mini_batch_size=3,
        temperature=config.rollout.temperature,
        clip_ratio_low=0.2,
        clip_ratio_high=0.28,
        clip_ratio_c=10.0,
        loss_agg_mode="token-mean",
        norm_adv_by_std=True,
        grad_clip=config.learner.grad_clip,
    )
    gradients = {
        n.removeprefix("base_model.model."): p.grad.numpy() for n, p in model.named_parameters() if p.requires_grad
    }
    merged = model.merge_and_unload()
    return {name: p.detach().numpy() for name, p in merged.named_parameters()}, gradients


def _trained(
    learner_model: Path, ranks: Ranks, *, steps: int = 1, **settings: Any
) -> tuple[Trainer, SnapshotPacker, Config]:
    config = make_config(learner_model, **_sections(**settings))
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    for step in range(steps):
        trainer.train(make_batch(step=step, groups=5, n=3))
    return trainer, SnapshotPacker(policy=policy, config=config, ranks=ranks), config


def _tensors(snapshot: Snapshot | None) -> dict[str, torch.Tensor]:
    assert snapshot is not None
    return {name: tensor.clone() for name, tensor in named_tensors(snapshot.manifest, snapshot.buffer)}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_step_equals_stock_peft(learner_model: Path, alone: Ranks, checkpointing: bool) -> None:
    weights, gradients = _peft_reference(learner_model)
    trainer, packer, _ = _trained(learner_model, alone, learner={"gradient_checkpointing": checkpointing})
    ours = {n: p for n, p in trainer.policy.causal_lm.named_parameters() if p.requires_grad}
    assert ours.keys() == gradients.keys()
    for name, parameter in ours.items():
        assert np.allclose(parameter.grad.full_tensor().numpy(), gradients[name], rtol=1e-4, atol=1e-6), name  # type: ignore[union-attr]
    published = _tensors(packer.gather(VERSION))
    assert published.keys() == weights.keys()
    for name, tensor in published.items():
        assert np.allclose(tensor.numpy(), weights[name], rtol=1e-4, atol=1e-5), name


def test_two_ranks_equal_stock_peft_and_push_the_same_adapters_either_way(learner_model: Path, tmp_path: Path) -> None:
    weights, gradients = _peft_reference(learner_model)
    merged, alone = on_ranks(learner_model, tmp_path / "out", [_job(), _job(lora="adapter")], ranks=2)
    for name, expected in gradients.items():
        assert np.allclose(merged[f"grad/{name}"], expected, rtol=1e-4, atol=1e-6), name
        assert np.array_equal(merged[f"grad/{name}"], alone[f"grad/{name}"]), name
    layout = plan([(name, "float32", weight.shape) for name, weight in weights.items()], bucket_bytes=64)
    packed = merged["weights"].view(np.uint8)
    for spec in layout.tensors:
        weight = packed[spec.offset_bytes :][: spec.size_bytes].view(np.float32).reshape(spec.shape)
        assert np.allclose(weight, weights[spec.name], rtol=1e-4, atol=1e-5), spec.name
    assert alone["weights"].size < merged["weights"].size / 2


def test_only_adapters_are_trained_and_the_base_keeps_every_bit(learner_model: Path, alone: Ranks) -> None:
    trainer, _, _ = _trained(learner_model, alone, steps=2)
    base = dict(AutoModelForCausalLM.from_pretrained(learner_model, dtype=torch.float32).named_parameters())
    held = trainer.policy.causal_lm.named_parameters()
    frozen = {name.replace(".base_layer.", "."): p for name, p in held if not p.requires_grad}
    assert frozen.keys() == base.keys()
    for name, parameter in frozen.items():
        assert torch.equal(parameter.full_tensor(), base[name]), name  # type: ignore[operator]
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == 2 * 7 * 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_version_0_is_the_base_model_and_merging_either_side_gives_the_same_bits(
    learner_model: Path, alone: Ranks, dtype: str
) -> None:
    base = AutoModelForCausalLM.from_pretrained(learner_model, dtype=dtype)
    _, untrained, _ = _trained(learner_model, alone, steps=0, dtype=dtype)
    for name, tensor in _tensors(untrained.gather(VERSION)).items():
        assert torch.equal(tensor, base.get_parameter(name)), name
    _, merging, config = _trained(learner_model, alone, dtype=dtype)
    _, sending, _ = _trained(learner_model, alone, dtype=dtype, lora="adapter")
    whole, adapters = merging.gather(VERSION), sending.gather(VERSION)
    assert whole is not None
    assert adapters is not None
    assert merging.adapters is not None
    assert adapters.manifest.digest == merging.adapters.manifest.digest
    assert whole_model(adapters, config).manifest.digest == whole.manifest.digest
    assert whole_model(whole, config) is whole


def test_the_exported_adapter_is_loaded_by_stock_peft_and_merges_to_the_exported_model(
    learner_model: Path, alone: Ranks, tmp_path: Path
) -> None:
    _, packer, config = _trained(learner_model, alone, lora="adapter")
    snapshot = packer.gather(VERSION)
    assert snapshot is not None
    export_version(snapshot, config=config, target=tmp_path / "model")
    for _ in range(2):  # the second replaces the first
        export_adapter(snapshot, config=config, target=tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(learner_model, dtype=torch.float32)
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").merge_and_unload()
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    ids = torch.arange(12)[None]
    assert torch.equal(merged(ids).logits, exported(ids).logits)
    assert not torch.equal(exported(ids).logits, AutoModelForCausalLM.from_pretrained(learner_model)(ids).logits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "model"]


def test_an_adapter_that_was_exported_outlives_a_power_failure(
    learner_model: Path, alone: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, packer, config = _trained(learner_model, alone, lora="adapter")
    snapshot = packer.gather(VERSION)
    assert snapshot is not None
    disk = Disk(monkeypatch, tmp_path)
    export_adapter(snapshot, config=config, target=tmp_path / "adapter")
    disk.close()
    assert disk.left()["adapter"] == {path.name: path.read_bytes() for path in (tmp_path / "adapter").iterdir()}


@pytest.mark.parametrize(("lora", "kind"), [("merged", "q_proj.base_layer"), ("adapter", "q_proj.lora_B.default")])
def test_weights_that_are_not_finite_are_never_published(
    learner_model: Path, alone: Ranks, lora: str, kind: str
) -> None:
    trainer, packer, _ = _trained(learner_model, alone, lora=lora)
    name = f"model.layers.1.self_attn.{kind}.weight"
    trainer.policy.causal_lm.get_parameter(name).data.view(-1)[3] = float("nan")
    with pytest.raises(
        SluiceError, match=r"version a1 is not published: model\.layers\.1\.self_attn\.q_proj.* not finite"
    ):
        packer.gather(VERSION)


def test_whole_weights_that_are_not_finite_are_never_published(learner_model: Path, alone: Ranks) -> None:
    trainer, packer, _ = _trained(learner_model, alone, lora_rank=0)
    trainer.policy.causal_lm.get_parameter("model.norm.weight").data.view(-1)[0] = float("inf")
    with pytest.raises(SluiceError, match=r"version a1 is not published: model\.norm\.weight holds"):
        packer.gather(VERSION)


def test_named_layers_alone_get_adapters(learner_model: Path, alone: Ranks) -> None:
    _, packer, _ = _trained(
        learner_model, alone, steps=0, lora="adapter", target_modules=["layers.1.mlp.up_proj", "q_proj"]
    )
    layers = {name.rpartition(".lora_")[0] for name in _tensors(packer.gather(VERSION))}
    assert layers == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    }


@pytest.mark.parametrize(
    ("targets", "got"), [(["q_proj", "qkv"], "qkv"), (["lm_head"], "lm_head"), ([], "an empty list")]
)
def test_unknown_target_modules_are_refused_with_the_layers_there_are(
    learner_model: Path, alone: Ranks, targets: list[str], got: str
) -> None:
    config = make_config(learner_model, **_sections(target_modules=targets))
    with pytest.raises(ConfigError, match=rf"model\.target_modules.*down_proj, gate_proj, k_proj.*got {got}$"):
        load_policy(config, alone)


def test_training_on_one_batch_again_and_again_lowers_its_loss(learner_model: Path, alone: Ranks) -> None:
    config = make_config(learner_model, **_sections(learner={"lr": 3e-2, "weight_decay": 0.0}))
    policy = load_policy(config, alone)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=alone)
    losses = []
    for _ in range(8):
        trainer.step = 0
        losses.append(trainer.train(make_batch(step=0, groups=5, n=3))["loss/policy"])
    assert losses[-1] < losses[0] - 0.05, losses
