"""Where each tensor of a model lies in the files of its folder, and whether slices of the files can be read.

Slices can be read where every tensor of the files stands unchanged in a tensor of the model, perhaps under another name or
as one expert's row of it (sluice/weights/file_form.py). What transformers has to compute (quantized weights, transposed
ones) and .bin files are read by transformers, whole, on every rank; `StoredModel.whole_because` says why.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from services.learner.distributed.ranks import Ranks
from services.learner.policy.lora import plain_name
from services.learner.policy.weight_files import AGAIN, ITEM_BYTES, StoredTensor, has_safetensors, stored_tensors
from sluice.errors import ConfigError
from sluice.weights.file_form import FileForm, FilePart, find_form
from sluice.weights.further_layers import is_further

_COMPUTED = (r"rotary_emb\.inv_freq", r"(^|\.)position_ids$")
"""Tensors of old files that models compute by themselves today; transformers' own loading passes over the same ones."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One tensor of the files, and its place in a tensor of the model."""

    tensor: StoredTensor
    part: FilePart


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredModel:
    """The places of a model's tensors."""

    tensors: Mapping[str, tuple[Source, ...]] = field(default_factory=dict, repr=False)
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
    stored = {tensor.name: tensor for tensor in stored_tensors(folder)}
    form = find_form(causal_lm, wanted, {name: tensor.shape for name, tensor in stored.items()})
    if form.computed:
        raise ConfigError(
            f"model.path: {stored[form.computed].file} has {form.computed}, which transformers keeps in another form that "
            "cannot be published under the files' names; docs/models.md says which models can"
        )
    if form.twice:
        return StoredModel(whole_because=form.twice)
    if any(part.dim is not None and part.expert is None for parts in form.parts.values() for part in parts):
        return StoredModel(whole_because="transformers joins tensors of the files to one")
    for tensor in stored.values():
        if tensor.name not in form.surplus and tensor.dtype not in ITEM_BYTES:
            return StoredModel(whole_because=f"{tensor.name} is stored as {tensor.dtype}")
    by_target = {
        target: tuple(Source(tensor=stored[part.name], part=part) for part in parts)
        for target, parts in form.parts.items()
    }
    _refuse_shapes(by_target, wanted)
    _refuse_surplus(form, stored, causal_lm)
    return _by_every_name(folder, by_target, wanted, causal_lm)


def published_form(folder: Path, causal_lm: PreTrainedModel) -> tuple[FileForm, dict[str, str]]:
    """How the files of a folder hold a model that is trained, and what is published beside its parameters.

    Published beside the parameters are buffers that files have and nobody trains, such as the bias by which DeepSeek-V3
    balances its experts: by the name in the model, the name in the files. For a folder without safetensors files there
    are none.
    """
    stored = stored_tensors(folder) if has_safetensors(folder) else ()
    passing = {name for name, _ in causal_lm.named_non_persistent_buffers()}
    parameters = {plain_name(name): each for name, each in causal_lm.named_parameters(remove_duplicate=False)}
    buffers = {
        name: each for name, each in causal_lm.named_buffers() if name not in passing and each.is_floating_point()
    }
    form = find_form(causal_lm, parameters | buffers, {tensor.name: tensor.shape for tensor in stored})
    return form, {name: parts[0].name for name in buffers if (parts := form.parts.get(name))}


def _only_whole(folder: Path, causal_lm: PreTrainedModel) -> str:
    """Why headers cannot tell where the tensors are; empty where they can. Raises ConfigError for a folder without weights."""
    if (folder / "adapter_config.json").is_file():
        return "the folder holds an adapter of another model"
    if getattr(causal_lm.config, "quantization_config", None):
        return "the weights are quantized"
    if getattr(causal_lm.config, "transformers_weights", None):
        return "config.json names another file of weights"
    if has_safetensors(folder):
        return ""
    if any((folder / name).is_file() for name in (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        return "the weights are in .bin files"
    raise ConfigError(
        f"model.path: {folder} has no weights: neither {SAFE_WEIGHTS_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}; {AGAIN}"
    )


def _refuse_shapes(by_target: Mapping[str, Sequence[Source]], wanted: Mapping[str, Tensor]) -> None:
    for target, sources in by_target.items():
        shape = tuple(wanted[target].shape)
        for tensor in (each.tensor for each in sources if _place_of(each.part, wanted[target]) != each.tensor.shape):
            raise ConfigError(
                f"model.path: {tensor.file} has {tensor.name} with shape {tensor.shape}, config.json beside it asks for "
                f"{shape}; they are of two models, {AGAIN}"
            )
        tensors = [each.tensor for each in sources]
        if sum(math.prod(tensor.shape) for tensor in tensors) != math.prod(shape):
            shapes = [tensor.shape for tensor in tensors]
            odd = min(tensors, key=lambda tensor: shapes.count(tensor.shape))
            raise ConfigError(
                f"model.path: {odd.file} has {odd.name} with shape {odd.shape} and {len(tensors) - 1} more tensors for "
                f"{target}, of which config.json beside it asks for {shape}; they are of two models, {AGAIN}"
            )


def _place_of(part: FilePart, parameter: Tensor) -> tuple[int, ...] | None:
    """The shape of a part's place in a parameter; None where the parameter has no such place."""
    try:
        return tuple(part.of(parameter).shape)
    except (IndexError, RuntimeError):
        return None


def _refuse_surplus(form: FileForm, stored: Mapping[str, StoredTensor], causal_lm: PreTrainedModel) -> None:
    """Raises ConfigError for tensors that the model has no place for, unless its architecture says to pass over them."""
    passed_over = {*(causal_lm._keys_to_ignore_on_load_unexpected or ()), *_COMPUTED}
    layers = causal_lm.config.get_text_config().num_hidden_layers
    if strange := [
        stored[name]
        for name, target in form.surplus.items()
        if not _matches(target, passed_over) and not is_further(target, layers=layers)
    ]:
        raise ConfigError(
            f"model.path: {strange[0].file} has {strange[0].name}{_and_more(strange)}, for which "
            f"{type(causal_lm).__name__} of config.json has no place; are they of two models?"
        )


def _by_every_name(
    folder: Path, by_target: Mapping[str, tuple[Source, ...]], wanted: Mapping[str, Tensor], causal_lm: PreTrainedModel
) -> StoredModel:
    """A stored tensor for each of the model's names. Raises ConfigError for tensors that no file has."""
    names_of: dict[int, list[str]] = {}
    for name, parameter in wanted.items():
        names_of.setdefault(id(parameter), []).append(name)
    tensors: dict[str, tuple[Source, ...]] = {}
    twins, missing = [], []
    for names in names_of.values():
        stored = [by_target[name] for name in names if name in by_target]
        if stored:
            tensors |= dict.fromkeys(names, stored[0])
            twins += [(stored[0][0].tensor, other[0].tensor) for other in stored[1:]]
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
