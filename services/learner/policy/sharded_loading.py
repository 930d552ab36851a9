"""Loading in shards: a model is built without memory and sharded, then each rank reads its own rows of every tensor.

So N ranks hold 1/N of the float32 model each, and no rank ever holds it whole. Files are mapped one tensor at a time, so
the pages of a file that count as a rank's own are those of one tensor's rows at most.

Not torch's HuggingFaceStorageReader: it takes every safetensors file of a folder, whatever the index says, knows no other
names than the model's, and does not say how far it is.
"""

import math
import time
from collections.abc import Callable, Iterator

import structlog
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedConfig, PreTrainedModel

from services.learner.distributed.ranks import Ranks
from services.learner.policy import lora
from services.learner.policy.forward import Policy
from services.learner.policy.model_config import empty_model, one_line
from services.learner.policy.stored_model import Source, StoredModel
from services.learner.policy.weight_files import StoredTensor
from sluice.config.schema import Config
from sluice.errors import ConfigError
from sluice.weights.adapters import adapters_among

log = structlog.get_logger(__name__)

PIECE_BYTES = 64 << 20
"""Read at once: large enough for a disk; what a device needs in host memory to convert a piece is twice that."""

LARGE_BYTES = 1 << 30
"""Of a model with fewer bytes in rank 0's share nothing is logged: it is read within seconds."""

LINE_EVERY_S = 10.0


def build(model_config: PreTrainedConfig, *, path: str, attention: str | None) -> PreTrainedModel:
    """A float32 model without memory, but for the buffers that no file holds: those have transformers' own values.

    Computed as from_pretrained does it: every tensor of the files is marked as there, and transformers initialises the rest.
    """
    causal_lm = empty_model(model_config, path=path, attention=attention)
    for name, buffer in list(causal_lm.named_non_persistent_buffers()):
        owner, leaf = _place(causal_lm, name)
        setattr(owner, leaf, torch.empty_like(buffer, device="cpu"))
    for tensor in causal_lm.state_dict(keep_vars=True).values():
        tensor._is_hf_initialized = True
    causal_lm.initialize_weights()
    return causal_lm


def twins_agree(stored: StoredModel, ranks: Ranks) -> bool:
    """Whether tensors that are stored twice for one parameter are equal. Collective: each rank compares its rows."""
    equal = True
    for one, other in stored.twins:
        rows = -(-one.shape[0] // ranks.size)
        pieces = (_pieces(tensor, ranks.rank * rows, (ranks.rank + 1) * rows) for tensor in (one, other))
        equal = equal and one.dtype == other.dtype and all(torch.equal(a, b) for a, b in zip(*pieces, strict=True))
    return ranks.agree(equal)


@torch.no_grad()
def fill(policy: Policy, stored: StoredModel, *, config: Config, ranks: Ranks) -> None:
    """Gives a sharded policy that was built without memory its memory and its values, in place: this rank's rows alone.

    Raises ConfigError when a file cannot be read after all.
    """
    buffers = list(policy.causal_lm.named_buffers(remove_duplicate=False))
    policy.to_empty(device="cpu" if config.learner.cpu_offload else ranks.device)
    for name, buffer in buffers:
        owner, leaf = _place(policy.causal_lm, name)
        if buffer.is_meta:
            [source] = stored.tensors[lora.plain_name(name)]
            buffer = _whole(source.tensor).to(ranks.device, buffer.dtype)
        setattr(owner, leaf, buffer)
    shards = {lora.plain_name(name): _rows_of(each, ranks) for name, each in policy.causal_lm.named_parameters()}
    drawn = {name for adapter in adapters_among(shards).values() for name in (adapter.a, adapter.b)}
    assert shards.keys() <= stored.tensors.keys() | drawn
    parts = [
        (source.tensor, *found)
        for name, shard in shards.items()
        for source in stored.tensors.get(name, ())
        if (found := _share_of(source, *shard)) is not None
    ]
    progress = _Progress(sum(len(rows) * tensor.row_bytes for tensor, _, rows in parts), shown=ranks.leads)
    for tensor, first, rows in parts:
        try:
            _read(tensor, first, rows, progress.add)
        except (OSError, SafetensorError) as error:  # the header was sound when the learner started
            raise ConfigError(f"model.path: {tensor.file} cannot be read: {one_line(error)}") from error
    lora.draw(policy.causal_lm, config, put=lambda matrix, values: _put(matrix, values, ranks))


def _place(root: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the tensor, and the tensor's name in the module."""
    owner, _, leaf = name.rpartition(".")
    return root.get_submodule(owner), leaf


def _rows_of(parameter: Tensor, ranks: Ranks) -> tuple[int, Tensor]:
    """The first row of this rank's shard, and the shard; FSDP2 cuts the first dimension into equal parts, the last shorter."""
    assert isinstance(parameter, DTensor)
    return min(ranks.rank * -(-len(parameter) // ranks.size), len(parameter)), parameter.to_local()


def _share_of(source: Source, first: int, rows: Tensor) -> tuple[int, Tensor] | None:
    """The first row to read of a stored tensor, and where its rows go in this rank's rows of a parameter, from `first` on.

    None for a whole expert that another rank holds.
    """
    if source.part.expert is None:
        return first, rows
    if not first <= source.part.expert < first + len(rows):
        return None
    return 0, source.part.of(rows, first=first)


def _put(parameter: Tensor, values: Tensor, ranks: Ranks) -> None:
    first, rows = _rows_of(parameter, ranks)
    rows.copy_(values[first : first + len(rows)])


def _read(tensor: StoredTensor, first: int, rows: Tensor, count: Callable[[int], None]) -> None:
    """Fills `rows` with the rows of a stored tensor from `first` on, converted to the type of `rows`."""
    done = 0
    for piece in _pieces(tensor, first, first + len(rows)):
        rows[done : done + len(piece)].copy_(piece)
        done += len(piece)
        count(piece.numel() * piece.element_size())
    assert done == len(rows), f"{tensor.name}: {done} rows instead of {len(rows)}"


def _pieces(tensor: StoredTensor, first: int, end: int) -> Iterator[Tensor]:
    """Rows `first` to `end` of a stored tensor, as stored, at most PIECE_BYTES (or one row) at a time."""
    step = max(1, PIECE_BYTES // max(1, tensor.row_bytes))
    end = min(end, tensor.shape[0])
    if first >= end:
        return
    with safe_open(tensor.file, framework="pt") as file:
        stored = file.get_slice(tensor.name)
        for start in range(first, end, step):
            yield stored[start : min(start + step, end)]


def _whole(tensor: StoredTensor) -> Tensor:
    """A stored tensor, as stored: a buffer, which every rank has."""
    with safe_open(tensor.file, framework="pt") as file:
        return file.get_tensor(tensor.name).clone()


class _Progress:
    """Says how much of its share of a large model rank 0 has read."""

    def __init__(self, total_bytes: int, *, shown: bool, now: Callable[[], float] = time.monotonic) -> None:
        self._total_bytes, self._now = total_bytes, now
        self._shown = shown and total_bytes >= LARGE_BYTES
        self._done_bytes, self._next_s = 0, -math.inf
        self.add(0)

    def add(self, read_bytes: int) -> None:
        """Counts; says it at the start, every LINE_EVERY_S, and at the end."""
        self._done_bytes += read_bytes
        over = self._done_bytes >= self._total_bytes
        if self._shown and (over or self._now() >= self._next_s):
            log.info("model_loading", done_bytes=self._done_bytes, total_bytes=self._total_bytes)
            self._next_s = self._now() + LINE_EVERY_S
