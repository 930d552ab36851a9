"""The safetensors files of a model folder by their headers alone: one file, or the files of an index.

Files that do not belong together are refused with one line: a file that is missing or cut short, an index that places a
tensor where it is not, a tensor in two files, files of different exports. Files of two models with equal names and shapes
cannot be told apart by their headers.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from services.learner.policy.model_config import one_line
from sluice.errors import ConfigError

ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1}
"""Types that a plain copy converts, with bytes an element. A tensor of another type belongs to a quantized model."""

AGAIN = "copy the model again"


@dataclass(frozen=True, kw_only=True, slots=True)
class StoredTensor:
    """One tensor of a file."""

    name: str
    """As in the file."""
    file: Path
    shape: tuple[int, ...]
    dtype: str
    """safetensors' name of the type."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one index of the first dimension, of a tensor whose type is in ITEM_BYTES."""
        return ITEM_BYTES[self.dtype] * math.prod(self.shape[1:])


def has_safetensors(folder: Path) -> bool:
    """Whether a folder has such a file or an index, by their usual names."""
    return any((folder / name).is_file() for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def stored_tensors(folder: Path) -> list[StoredTensor]:
    """All tensors of a folder that has such a file or an index. Raises ConfigError, which names file and tensor."""
    single = folder / SAFE_WEIGHTS_NAME
    return _header(single)[0] if single.is_file() else _by_index(folder / SAFE_WEIGHTS_INDEX_NAME)


def _by_index(index: Path) -> list[StoredTensor]:
    """The tensors of all files of an index, each in the file that the index names for it."""
    placed = _weight_map(index)
    found: dict[str, StoredTensor] = {}
    exports: dict[str, str] = {}
    for name in sorted(set(placed.values())):
        file = index.parent / name
        if not file.is_file():
            raise ConfigError(f"model.path: {index} names {name}, which is not there; {AGAIN}")
        tensors, version = _header(file)
        exports[version] = name
        for tensor in tensors:
            if (other := found.setdefault(tensor.name, tensor)) is not tensor:
                raise _of_two_models(index, f"tensor {tensor.name} is both in {other.file.name} and in {name}")
    for tensor, name in placed.items():
        if tensor not in found or found[tensor].file != index.parent / name:
            raise _of_two_models(index, f"tensor {tensor} is not in {name}, where the index places it")
    if len(exports) > 1:
        said = ", ".join(f"{name} of version {version or 'none'}" for version, name in sorted(exports.items()))
        raise _of_two_models(index, f"the files were written by different exports, {said}")
    return list(found.values())


def _of_two_models(index: Path, fault: str) -> ConfigError:
    return ConfigError(f"model.path: {index}: {fault}; the files are of two models or of two downloads, {AGAIN}")


def _weight_map(index: Path) -> dict[str, str]:
    """File names by tensor. Raises ConfigError."""
    try:
        placed = json.loads(index.read_bytes())["weight_map"]
        sound = bool(placed) and all(_is_inside(name) for name in placed.values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(
            f"model.path: {index} is no index of safetensors files: {one_line(error)}; {AGAIN}"
        ) from error
    if not sound:
        raise ConfigError(f"model.path: {index} must name a file of its own folder for every tensor; {AGAIN}")
    return placed


def _is_inside(name: object) -> bool:
    return isinstance(name, str) and name != "" and not Path(name).is_absolute() and ".." not in Path(name).parts


def _header(file: Path) -> tuple[list[StoredTensor], str]:
    """A file's tensors, and the version that an export of a run wrote into the file (empty in other files)."""
    try:
        with safe_open(file, framework="pt") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 - no mapping
            facts = opened.metadata() or {}
            tensors = [
                StoredTensor(name=name, file=file, shape=tuple(part.get_shape()), dtype=part.get_dtype())
                for name, part in slices.items()
            ]
    except (OSError, ValueError, SafetensorError) as error:
        raise ConfigError(
            f"model.path: {file} is cut short or no safetensors file: {one_line(error)}; {AGAIN}"
        ) from error
    return tensors, facts.get("sluice_version", "")
