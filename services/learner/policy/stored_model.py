"""Where each tensor of a model lies in the files of its folder, and whether slices of the files can be read.

Slices can be read where every tensor of the files is one tensor of the model, perhaps under another name
(sharded_loading.py). What transformers has to compute (experts that are joined, quantized weights) and .bin files are
read by transformers, whole, on every rank; `StoredModel.whole_because` says why.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from services.learner.distributed.ranks import Ranks
from services.learner.policy.weight_files import AGAIN, ITEM_BYTES, StoredTensor, stored_tensors
from sluice.errors import ConfigError

_COMPUTED = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Tensors of old files that models compute by themselves today; transformers' own loading passes over the same ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredModel:
    """The places of a model's tensors."""

    tensors: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)
    """Every parameter and persistent buffer, by the model's name; a tied parameter by each of its names."""
    twins: Sequence[tuple[StoredTensor, StoredTensor]] = ()
    """Tensors that are stored both for one tied parameter; where they differ, the model is not tied after all."""
    whole_because: str = ""
    """Why only transformers can read the folder; empty where slices can be read."""


def locate_on_all(folder: Path, causal_lm: PreTrainedModel, ranks: Ranks) -> StoredModel:
    """`locate`, with one outcome for all ranks. Collective. Raises the same ConfigError on every rank."""
    stored, fault = StoredModel(), ""
    try:
        stored = locate(folder, causal_lm)
    except ConfigError as error:  # for the other ranks too
        fault = str(error)
    if faults := [text for text in ranks.hear_all(fault) if text]:
        raise ConfigError(faults[0])
    reasons = [text for text in ranks.hear_all(stored.whole_because) if text]
    return StoredModel(whole_because=reasons[0]) if reasons else stored


def locate(folder: Path, causal_lm: PreTrainedModel) -> StoredModel:
    """Reads headers alone; `causal_lm` may be without memory. Raises ConfigError, which names file and tensor."""
    if why := _only_whole(folder, causal_lm):
        return StoredModel(whole_because=why)
    wanted: dict[str, Tensor] = causal_lm.state_dict(keep_vars=True)
    target_of = _renaming(causal_lm, wanted)
    by_target: dict[str, StoredTensor] = {}
    surplus = []
    for tensor in stored_tensors(folder):
        target, converted = target_of(tensor.name)
        if converted:
            return StoredModel(
                whole_because=f"transformers computes tensors of the model from {tensor.name} and others"
            )
        if target not in wanted:
            surplus.append((target, tensor))
        elif tensor.dtype not in ITEM_BYTES:
            return StoredModel(whole_because=f"{tensor.name} is stored as {tensor.dtype}")
        elif (other := by_target.setdefault(target, tensor)) is not tensor:
            return StoredModel(whole_because=f"{other.name} and {tensor.name} are both stored for {target}")
    _refuse_shapes(by_target, wanted)
    _refuse_surplus(surplus, causal_lm)
    return _by_every_name(folder, by_target, wanted, causal_lm)


def _only_whole(folder: Path, causal_lm: PreTrainedModel) -> str:
    """Why headers cannot tell where the tensors are; empty where they can. Raises ConfigError for a folder without weights."""
    if (folder / "adapter_config.json").is_file():
        return "the folder holds an adapter of another model"
    if getattr(causal_lm.config, "quantization_config", None):
        return "the weights are quantized"
    if getattr(causal_lm.config, "transformers_weights", None):
        return "config.json names another file of weights"
    if any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
        return ""
    if any((folder / name).is_file() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        return "the weights are in .bin files"
    raise ConfigError(
        f"model.path: {folder} has no weights: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; {AGAIN}"
    )


def _renaming(causal_lm: PreTrainedModel, wanted: Mapping[str, Tensor]) -> Callable[[str], tuple[str, bool]]:
    """A function from a stored name to the model's name, and whether transformers computes what is stored under the name.

    The order of the steps is that of transformers' convert_and_load_state_dict_in_model.
    """
    mapping = get_model_conversion_mapping(causal_lm)
    renamings = [each for each in mapping if isinstance(each, WeightRenaming)]
    converters = [each for each in mapping if isinstance(each, WeightConverter)]
    prefix, known = causal_lm.base_model_prefix, dict(wanted)

    def target_of(name: str) -> tuple[str, bool]:
        target, pattern = rename_source_key(name, renamings, converters, prefix, known)
        if target not in known and name in known:
            target, pattern = rename_source_key(name, [], [], prefix, known)
        return target, pattern is not None

    return target_of


def _refuse_shapes(by_target: Mapping[str, StoredTensor], wanted: Mapping[str, Tensor]) -> None:
    for target, tensor in by_target.items():
        if tensor.shape != (shape := tuple(wanted[target].shape)):
            raise ConfigError(
                f"model.path: {tensor.file} has {tensor.name} with shape {tensor.shape}, config.json beside it asks for "
                f"{shape}; they are of two models, {AGAIN}"
            )


def _refuse_surplus(surplus: Iterable[tuple[str, StoredTensor]], causal_lm: PreTrainedModel) -> None:
    """Raises ConfigError for tensors that the model has no place for, unless its architecture says to pass over them."""
    passed_over = {*(causal_lm._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED}
    if strange := [tensor for target, tensor in surplus if not _matches(target, passed_over)]:
        raise ConfigError(
            f"model.path: {strange[0].file} has {strange[0].name}{_and_more(strange)}, for which "
            f"{type(causal_lm).__name__} of config.json has no place; are they of two models?"
        )


def _by_every_name(
    folder: Path, by_target: Mapping[str, StoredTensor], wanted: Mapping[str, Tensor], causal_lm: PreTrainedModel
) -> StoredModel:
    """A stored tensor for each of the model's names. Raises ConfigError for tensors that no file has."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in wanted.items():
        names_of.setdefault(id(parameter), []).append(name)
    tensors: dict[str, StoredTensor] = {}
    twins, missing = [], []
    for names in names_of.values():
        stored = [by_target[name] for name in names if name in by_target]
        if stored:
            tensors |= dict.fromkeys(names, stored[0])
            twins += [(stored[0], other) for other in stored[1:]]
        else:
            missing.append(names[0])
    for name in missing:
        if _matches(name, causal_lm._keys_to_ignore_on_load_missing or ()):
            return StoredModel(whole_because=f"transformers makes {name} up, which no file has")
    if missing:
        raise ConfigError(
            f"model.path: no file of {folder} has {missing[0]}{_and_more(missing)}, which {type(causal_lm).__name__} of "
            f"config.json needs; {AGAIN}"
        )
    return StoredModel(tensors=tensors, twins=tuple(twins))


def _and_more(items: Sequence[object]) -> str:
    return f" and {len(items) - 1} more tensors" if len(items) > 1 else ""


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)
