"""One rank that publishes a tiny model both ways, with the learner's buckets and by whole tensors.

arguments: MODEL MIXTURE OUT; the leader writes what was found to OUT. MIXTURE has experts, which are published as transformers
itself saves them.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import AutoModelForCausalLM

from services.learner.distributed.ranks import Ranks, join_ranks
from services.learner.policy.forward import Policy
from services.learner.policy.lora import plain_name
from services.learner.policy.model import load_policy
from services.learner.snapshot import gather as gathering
from services.learner.snapshot.pack import SnapshotPacker
from sluice.config.schema import Config
from sluice.errors import SluiceError
from sluice.policy_version import PolicyVersion
from sluice.weights.adapters import adapters_among, scale_of
from sluice.weights.manifest import plan
from sluice.weights.merging import merge
from sluice.weights.snapshot import Packer
from sluice.weights.tensors import as_bytes
from tests.unit.learner.learner_cases import make_config

VERSION = PolicyVersion(lineage="a", number=1)
SMALL_BUCKET_BYTES = 2048
"""So that the tiny model fills many."""


def main() -> None:
    """Every case, then weights that are not finite on the last rank alone."""
    torch.set_num_threads(1)
    model, mixture, out = map(Path, sys.argv[1:])
    ranks = join_ranks()
    found: dict[str, Any] = {"digests": []}
    for dtype in ("float32", "bfloat16"):
        for lora in (None, "merged", "adapter"):
            found["digests"].append([dtype, lora, *_both_ways(_config(model, dtype, lora), ranks, _plain_digest)])
        found["digests"].append([dtype, "experts", *_both_ways(_config(mixture, dtype, None), ranks, _saved_digest)])
    found["refusals"] = ranks.hear_all(_refusal(_config(model, "bfloat16", None), ranks)) if ranks.size > 1 else []
    if ranks.leads:
        out.write_text(json.dumps(found))
    ranks.leave()


def _config(model: Path, dtype: str, lora: str | None) -> Config:
    sections: dict[str, dict[str, Any]] = {"model": {"dtype": dtype}}
    if lora is not None:
        sections = {"model": {"dtype": dtype, "lora_rank": 4}, "weights": {"lora": lora}}
    return make_config(model, model={"path": str(model)} | sections.pop("model"), **sections)


def _both_ways(config: Config, ranks: Ranks, other: Callable[[Policy, Config], str]) -> tuple[str, str]:
    """The digests of the learner's way and of the `other` one ("" on followers)."""
    policy = load_policy(config, ranks)
    _shake(policy)
    with mock.patch.object(gathering, "BUCKET_BYTES", SMALL_BUCKET_BYTES):
        packer = SnapshotPacker(policy=policy, config=config, ranks=ranks)
    snapshots = [packer.gather(VERSION) for _ in range(2)]
    plain = other(policy, config)
    assert (snapshots[0] is not None) == ranks.leads
    digests = {snapshot.manifest.digest for snapshot in snapshots if snapshot is not None}
    return "".join(digests), plain if ranks.leads else ""


def _shake(policy: Policy) -> None:
    """Adapters begin at zero and norms at one; other values than those, the same whatever the number of ranks."""
    for index, (_, parameter) in enumerate(sorted(policy.causal_lm.named_parameters())):
        whole = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        assert isinstance(parameter, DTensor)
        shard = parameter.to_local()
        rows = -(-len(whole) // parameter.device_mesh.size())
        shard.data.copy_(whole[rows * dist.get_rank() :][: len(shard)])


def _plain_digest(policy: Policy, config: Config) -> str:
    """By whole tensors, on every rank."""
    wholes = {plain_name(name): _whole(p) for name, p in policy.causal_lm.named_parameters()}
    adapters = adapters_among(wholes)
    matrices = {name for adapter in adapters.values() for name in (adapter.a, adapter.b)}
    alone = config.weights.lora == "adapter"
    dtype = "float32" if alone else config.model.dtype
    tensors = {name: whole for name, whole in wholes.items() if (name in matrices) == alone}
    for name, adapter in adapters.items():
        if name in tensors:
            tensors[name] = merge(tensors[name], wholes[adapter.a], wholes[adapter.b], scale=scale_of(config))
    packer = Packer(plan([(name, dtype, tuple(t.shape)) for name, t in tensors.items()], bucket_bytes=64))
    for name, tensor in tensors.items():
        packer.put(name, as_bytes(tensor.to(getattr(torch, dtype))))
    return packer.seal(VERSION).manifest.digest


def _saved_digest(policy: Policy, config: Config) -> str:
    """By transformers' own save_pretrained, which writes on rank 0 alone."""
    dtype = config.model.dtype
    stock = AutoModelForCausalLM.from_pretrained(config.model.path)
    with torch.no_grad():
        for name, parameter in policy.causal_lm.named_parameters():
            stock.get_parameter(name).copy_(_whole(parameter))
    if dist.get_rank():
        return ""
    with TemporaryDirectory() as folder:
        stock.to(getattr(torch, dtype)).save_pretrained(folder)
        tensors = load_file(Path(folder) / "model.safetensors")
    packer = Packer(plan([(name, dtype, tuple(t.shape)) for name, t in tensors.items()], bucket_bytes=64))
    for name, tensor in tensors.items():
        packer.put(name, as_bytes(tensor))
    return packer.seal(VERSION).manifest.digest


def _whole(parameter: Tensor) -> Tensor:
    assert isinstance(parameter, DTensor)
    return parameter.full_tensor().detach()


def _refusal(config: Config, ranks: Ranks) -> str:
    """What this rank says to weights that are not finite; the last rank's last shard of the last norm is not."""
    policy = load_policy(config, ranks)
    norm = policy.causal_lm.get_parameter("model.norm.weight")
    assert isinstance(norm, DTensor)
    if ranks.rank == ranks.size - 1:
        norm.to_local().data[-1] = float("nan")
    packer = SnapshotPacker(policy=policy, config=config, ranks=ranks)
    try:
        packer.gather(VERSION)
    except SluiceError as refused:
        return str(refused)
    return "published"
