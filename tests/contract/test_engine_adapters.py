"""Adapters merged by a rollout leave its engine with the bits that whole merged weights leave it with."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from services.rollout.engine import Engine, FinishedSample, SampleRequest
from services.rollout.model_files import read_model
from sluice.config.schema import Config
from sluice.policy_version import PolicyVersion
from sluice.weights.manifest import plan
from sluice.weights.snapshot import Packer, Snapshot

if TYPE_CHECKING:
    import torch

RANK, ALPHA = 4, 6.0
ALL = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
PROMPT = (5, 6, 7, 8)


@pytest.fixture(
    scope="module",
    params=[pytest.param("transformers", marks=pytest.mark.integration), pytest.param("vllm", marks=pytest.mark.e2e)],
)
def engine(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Engine]:
    from services.rollout.app import make_engine

    made = make_engine(config(model_path), read_model(model_path), kind=request.param)
    yield made
    made.close()


def config(model_path: Path) -> Config:
    return Config.model_validate(
        {
            "model": {"path": str(model_path), "dtype": "float32", "lora_rank": RANK, "lora_alpha": ALPHA},
            "data": {"train_files": ["f.jsonl"], "max_prompt_length": 32, "max_response_length": 96},
            "rollout": {"max_num_seqs": 16, "kv_cache_bytes": 32 << 20},
            "weights": {"lora": "adapter"},
        }
    )


def adapters(model_path: Path, *, targets: tuple[str, ...], seed: int) -> dict[str, "torch.Tensor"]:
    """Random ones, by their names in a snapshot."""
    import torch

    from tests.tiny_model import load

    noise, found = torch.Generator().manual_seed(seed), {}
    for name, module in load(model_path).named_modules():
        if name.rpartition(".")[2] in targets:
            outputs, inputs = module.weight.shape  # type: ignore[union-attr,misc]
            found[f"{name}.lora_A.weight"] = torch.randn(RANK, inputs, generator=noise) * 0.1
            found[f"{name}.lora_B.weight"] = torch.randn(outputs, RANK, generator=noise) * 0.1
    return found


def sealed(tensors: dict[str, "torch.Tensor"], number: int) -> Snapshot:
    packer = Packer(plan([(n, "float32", tuple(t.shape)) for n, t in tensors.items()], bucket_bytes=1 << 16))
    for name, tensor in tensors.items():
        packer.put(name, tensor.numpy())
    return packer.seal(PolicyVersion(lineage="a", number=number))


def draw(engine: Engine) -> list[FinishedSample]:
    for seed in range(8):
        engine.add(
            SampleRequest(sample_id=str(seed), prompt_token_ids=PROMPT, seed=seed, temperature=1.0, max_tokens=24)
        )
    done: dict[str, FinishedSample] = {}
    while engine.running:
        done |= {sample.sample_id: sample for sample in engine.step()}
    return [done[str(seed)] for seed in range(8)]


def weights_of(engine: Any) -> dict[str, "torch.Tensor"]:
    """Copies of everything the engine's model holds."""
    if hasattr(engine, "_core"):
        [found] = engine._core.collective_rpc(_copy)
        return found
    return {name: p.detach().clone() for name, p in engine._model.named_parameters()}


def _copy(worker: Any) -> dict[str, "torch.Tensor"]:
    return {name: p.detach().clone() for name, p in worker.model_runner.model.named_parameters()}


@pytest.mark.parametrize("targets", [ALL, ("q_proj", "up_proj")])
def test_merging_here_and_merging_at_the_learner_give_the_same_bits(
    engine: Engine, model_path: Path, targets: tuple[str, ...]
) -> None:
    import torch

    from services.rollout.adapter_merging import AdapterMerger
    from tests.tiny_model import load

    base = {name: p.detach() for name, p in load(model_path).named_parameters()}
    whole = sealed(base, 0)
    engine.load_weights(whole.manifest, whole.buffer, recompute_kv=False)
    untouched = weights_of(engine)
    merger = AdapterMerger(read_model(model_path), config(model_path))
    for number in (1, 2):  # what the first one merged must not stay
        trained = adapters(model_path, targets=targets, seed=number)
        sent = sealed(trained, number)
        merger.check(sent.manifest)
        here = merger.merge(sent.manifest, sent.buffer)
        assert len(here.manifest.tensors) == len(trained) / 2
        engine.load_weights(here.manifest, here.buffer, recompute_kv=False)
    merged_here, samples_here = weights_of(engine), draw(engine)

    for name in [name for name in trained if ".lora_A." in name]:
        weight, b = name.replace("lora_A.", ""), name.replace("lora_A", "lora_B")
        base[weight] = base[weight] + (trained[b] @ trained[name]) * (ALPHA / RANK)
    whole = sealed(base, 3)
    engine.load_weights(whole.manifest, whole.buffer, recompute_kv=False)
    merged_there, samples_there = weights_of(engine), draw(engine)

    assert merged_here.keys() == merged_there.keys()
    for name, weight in merged_there.items():
        assert torch.equal(merged_here[name], weight), name
    changed = {name for name, weight in merged_here.items() if not torch.equal(weight, untouched[name])}
    assert changed
    assert not [name for name in changed if "norm" in name or "embed" in name]
    for one, other in zip(samples_here, samples_there, strict=True):
        np.testing.assert_array_equal(one.token_ids, other.token_ids)
        np.testing.assert_array_equal(one.logprobs, other.logprobs)
        assert one.spans[0].version.number == 2
