"""LoRA (arXiv:2106.09685): low-rank adapters on frozen linear layers, and the folders that a run with adapters leaves.

PEFT injects the adapters into the model; the module tree stays the same. B starts at zero, so version 0 is the base model.
snapshot/pack.py and sluice.weights push and merge adapters.
"""

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import safetensors
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sluice.config.schema import Config
from sluice.errors import ConfigError, SluiceError
from sluice.run_dir.durable import name_synced, sync_tree
from sluice.run_dir.full_disk import located
from sluice.weights.adapters import adapters_among, scale_of
from sluice.weights.merging import map_tensors, merged
from sluice.weights.snapshot import Snapshot

if TYPE_CHECKING:
    from peft import LoraConfig

_PEFT_PREFIX = "base_model.model."
"""Prefix of every name in PEFT's own files."""

_WITHOUT_EXPERTS = "; experts get no adapters, train them without model.lora_rank"

_ADAPTER = "default"
"""PEFT's name for the only adapter."""


def attach(causal_lm: PreTrainedModel, config: Config) -> None:
    """Freezes the model and adds adapters, the same on every rank; does nothing when `model.lora_rank` is 0.

    Raises ConfigError when `model.target_modules` names no linear layer.
    """
    if not config.model.lora_rank:
        return
    from peft import inject_adapter_in_model  # not needed by most runs

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        # Of a mixture of experts PEFT would take names of dense layers for those that experts had in transformers 4.
        root = nn.ModuleDict({"causal_lm": causal_lm}) if _has_experts(causal_lm) else causal_lm
        inject_adapter_in_model(_peft_config(config, _layers(causal_lm, config)), root)


def draw(causal_lm: PreTrainedModel, config: Config, *, put: Callable[[nn.Parameter, Tensor], None]) -> None:
    """Hands to `put` every adapter matrix and its first values, float32, as `attach` gives them to a model with memory.

    Of a model without memory PEFT throws the values away. PEFT 0.21 makes both matrices as torch.nn.Linear does, then
    draws A again and sets B to zero (`LoraLayer.update_layer`, `reset_lora_parameters`), layer after layer; so does this
    function, one layer at a time.
    """
    if not config.model.lora_rank:
        return
    from peft.tuners.lora import LoraLayer

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        for layer in causal_lm.modules():
            if isinstance(layer, LoraLayer):
                a, b = (part[_ADAPTER].get_parameter("weight") for part in (layer.lora_A, layer.lora_B))
                a_values, b_values = (nn.Linear(each.shape[1], each.shape[0], bias=False).weight for each in (a, b))
                put(a, nn.init.kaiming_uniform_(a_values, a=math.sqrt(5)))
                put(b, nn.init.zeros_(b_values))


def _has_experts(causal_lm: PreTrainedModel) -> bool:
    """Whether a parameter stacks the matrices of experts, as transformers does."""
    return any(parameter.ndim == 3 and ".experts." in name for name, parameter in causal_lm.named_parameters())


def plain_name(parameter: str) -> str:
    """A parameter's name without PEFT's additions: the base model's name, or an adapter name of sluice.weights.adapters."""
    return parameter.replace(".base_layer.", ".").replace(f".{_ADAPTER}.", ".")


def whole_model(snapshot: Snapshot, config: Config) -> Snapshot:
    """A snapshot of adapters merged into `model.path`; any other snapshot unchanged. Needs no collective."""
    if not adapters_among(spec.name for spec in snapshot.manifest.tensors):
        return snapshot
    base = map_tensors(Path(config.model.path))
    return merged(snapshot.manifest, snapshot.buffer, base=base, scale=scale_of(config), dtype=config.model.dtype)


def export_adapter(snapshot: Snapshot, *, config: Config, target: Path) -> None:
    """Writes a snapshot of adapters as a folder that `peft.PeftModel.from_pretrained` loads.

    The folder is written beside the target first, so that a reader never sees half an adapter. Raises SluiceError,
    from NoRoom when the disk is full.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write_adapter(snapshot, config=config, folder=partial)
        sync_tree(partial)
        shutil.rmtree(target, ignore_errors=True)
        name_synced(partial, target)
    except (OSError, safetensors.SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        size_bytes = sum(spec.size_bytes for spec in snapshot.manifest.tensors)
        cause = located(error, target.parent, size_bytes)
        raise SluiceError(
            f"export of the adapters of {snapshot.manifest.version} to {target} failed: {cause}"
        ) from cause


def _write_adapter(snapshot: Snapshot, *, config: Config, folder: Path) -> None:
    tensors = {
        # Pointers into the snapshot's buffer, which outlives this call.
        _PEFT_PREFIX + spec.name: safetensors.TensorSpec(
            dtype=spec.dtype, shape=spec.shape, data_ptr=view.ctypes.data, data_len=view.nbytes
        )
        for spec, view in snapshot.tensors()
    }
    facts = {"format": "pt", "sluice_version": str(snapshot.manifest.version)}
    weights = folder / "adapter_model.safetensors"
    safetensors.serialize_file(tensors, str(weights), facts)
    adapters = adapters_among(spec.name for spec in snapshot.manifest.tensors)
    _peft_config(config, [adapter.layer for adapter in adapters.values()]).save_pretrained(str(folder))
    weights.chmod(
        (folder / "adapter_config.json").stat().st_mode
    )  # safetensors makes files readable for the owner alone


def _peft_config(config: Config, layers: list[str]) -> "LoraConfig":
    from peft import LoraConfig

    return LoraConfig(
        r=config.model.lora_rank,
        lora_alpha=config.model.lora_alpha,  # pyrefly: ignore[bad-argument-type] - any number
        target_modules=layers,
        base_model_name_or_path=config.model.path,
        task_type="CAUSAL_LM",
    )


def _layers(causal_lm: PreTrainedModel, config: Config) -> list[str]:
    """Full names of the linear layers that get adapters."""
    head = causal_lm.get_output_embeddings()
    linear = [
        name for name, module in causal_lm.named_modules() if isinstance(module, nn.Linear) and module is not head
    ]
    wanted = config.model.target_modules
    if wanted == "all-linear":
        return linear
    chosen = {target: [name for name in linear if f".{name}".endswith(f".{target}")] for target in wanted}
    missing = [target for target, found in chosen.items() if not found]
    if missing or not chosen:
        kinds = ", ".join(sorted({name.rpartition(".")[2] for name in linear}))
        raise ConfigError(
            f"model.target_modules: must be all-linear or name linear layers of {config.model.path} ({kinds}), got "
            f"{missing[0] if missing else 'an empty list'}{_WITHOUT_EXPERTS if _has_experts(causal_lm) else ''}"
        )
    return sorted({name for found in chosen.values() for name in found})
