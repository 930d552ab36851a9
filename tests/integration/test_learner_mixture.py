"""A mixture of experts in training: routers train, nothing is added to the loss, and every folder has the files' names."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import AutoModelForCausalLM

from services.learner.checkpoint.export import export_version
from services.learner.checkpoint.stored_weights import read_snapshot
from services.learner.checkpoint.training_state import CheckpointState, training_state, write_state
from services.learner.distributed.ranks import Ranks
from services.learner.policy.model import load_policy
from services.learner.policy.optimizer import make_optimizer
from services.learner.snapshot.pack import SnapshotPacker
from services.learner.training.train_step import Trainer
from services.rollout.model_files import check_adapters, check_tensors, read_model
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.policy_version import PolicyVersion
from sluice.weights.snapshot import Snapshot
from tests.mixture_models import write_mixture
from tests.unit.learner.learner_cases import make_batch, make_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]

FIRST = PolicyVersion(lineage="a", number=1)


def _trained(config: Config, ranks: Ranks) -> tuple[Trainer, Snapshot]:
    """After one step."""
    policy = load_policy(config, ranks)
    trainer = Trainer(policy=policy, optimizer=make_optimizer(policy, config), config=config, ranks=ranks)
    trainer.train(make_batch(groups=6, n=3))
    snapshot = SnapshotPacker(policy=policy, config=config, ranks=ranks).gather(FIRST)
    assert snapshot is not None
    return trainer, snapshot


def test_no_auxiliary_loss_and_no_noise_whatever_the_configuration_says(tmp_path: Path, alone: Ranks) -> None:
    plain = write_mixture(tmp_path / "plain", "mixtral", layers=2)
    asks = {"output_router_logits": True, "router_aux_loss_coef": 100.0, "router_jitter_noise": 0.5}
    other = write_mixture(tmp_path / "other", "mixtral", layers=2, **asks)
    assert json.loads((other / "config.json").read_text()).items() >= asks.items()
    found = [_trained(make_config(folder), alone)[1] for folder in (plain, other)]
    assert found[0].manifest.digest == found[1].manifest.digest

    before = load_file(plain / "model.safetensors")
    after = {spec.name: view.view("float32").reshape(spec.shape) for spec, view in found[0].tensors()}
    assert after.keys() == before.keys()
    for name in (f"model.layers.{layer}.block_sparse_moe.gate.weight" for layer in range(2)):
        moved = torch.from_numpy(after[name].copy()) - before[name]
        assert (moved != 0).all(), "every row of a router learns"


def test_a_checkpoint_is_exported_as_it_was_published(tmp_path: Path, alone: Ranks) -> None:
    base = write_mixture(tmp_path / "base", "deepseek_v3", layers=2)
    config = make_config(base, model={"path": str(base), "dtype": "bfloat16"})
    trainer, published = _trained(config, alone)
    save(training_state(trainer), checkpoint_id=tmp_path / "step-1", no_dist=True)
    write_state(CheckpointState(step=1, lineage="a"), tmp_path / "step-1")
    read = read_snapshot(tmp_path / "step-1", config)
    assert read.manifest == published.manifest
    check_tensors(read.manifest, read_model(base).tensors)

    export_version(read, config=config, target=tmp_path / "model")
    stored, former = (load_file(folder / "model.safetensors") for folder in (tmp_path / "model", base))
    bias = "model.layers.1.mlp.gate.e_score_correction_bias"
    assert stored.keys() == former.keys()
    assert torch.equal(stored[bias], former[bias])
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = dict(AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.bfloat16).named_parameters())
    for name, parameter in trainer.policy.causal_lm.named_parameters():
        assert torch.equal(loaded[name], parameter.full_tensor().to(torch.bfloat16)), name  # type: ignore[attr-defined]


@pytest.mark.parametrize("pushed", ["merged", "adapter"])
def test_adapters_leave_experts_and_routers_alone(tmp_path: Path, alone: Ranks, pushed: str) -> None:
    base = write_mixture(tmp_path, "qwen3_moe", layers=1)
    sections: dict[str, Any] = {
        "model": {"path": str(base), "dtype": "float32", "lora_rank": 2},
        "weights": {"lora": pushed},
    }
    _, published = _trained(make_config(base, **sections), alone)
    if pushed == "adapter":
        check_adapters(published.manifest, read_model(base).tensors, rank=2)
        assert not [spec.name for spec in published.manifest.tensors if "self_attn" not in spec.name]
        return
    before = load_file(base / "model.safetensors")
    after = {spec.name: view.view("float32").reshape(spec.shape) for spec, view in published.tensors()}
    changed = {name for name in before if not (after[name] == before[name].numpy()).all()}
    assert changed == {name for name in before if "_proj" in name and "self_attn" in name}


def test_adapters_on_experts_are_refused_by_name(tmp_path: Path, alone: Ranks) -> None:
    base = write_mixture(tmp_path, "qwen3_moe", layers=1)
    lora = {"path": str(base), "dtype": "float32", "lora_rank": 2, "target_modules": ["q_proj", "gate_up_proj"]}
    with pytest.raises(ConfigError, match=r"^model\.target_modules: .* got gate_up_proj; experts get no adapters"):
        load_policy(make_config(base, model=lora), alone)
