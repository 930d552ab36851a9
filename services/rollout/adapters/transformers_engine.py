"""Plain Hugging Face transformers as an engine, for machines where vLLM does not run.

Continuous batching over one left-padded KV cache: rows leave when they finish, new rows are prefilled together and
appended, columns that every row pads are cut. New weights are copied into the module's parameters. Simple rather than
fast: no paging and no prefix cache, so memory grows with the longest row; `max_num_seqs` bounds the memory.

Letters: B rows, S columns of the cache, V vocabulary.
"""

from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from services.rollout.adapters.engine_environment import device_name
from services.rollout.engine import FinishedSample, FinishReason, RunningSample, SampleRequest
from services.rollout.model_files import ModelFacts
from sluice.errors import ConfigError
from sluice.policy_version import PolicyVersion
from sluice.rope import fix_rope
from sluice.weights.file_form import find_form
from sluice.weights.manifest import Manifest
from sluice.weights.tensors import named_tensors


@dataclass(slots=True)
class _Row:
    """One running sample and the sample's own source of randomness."""

    sample: RunningSample
    noise: torch.Generator

    @property
    def prefix(self) -> list[int]:
        """Every token but the newest sampled token, which the next step runs."""
        return [*self.sample.request.prompt_token_ids, *self.sample.token_ids[:-1]]


class TransformersEngine:
    """See services.rollout.engine.Engine."""

    def __init__(self, model: ModelFacts, *, dtype: str, max_model_len: int, max_num_seqs: int) -> None:
        """Loads the model, on CUDA where there is a CUDA device."""
        self.name = f"transformers {transformers.__version__} on {device_name()}"
        self.max_model_len = max_model_len
        self.capacity = self.limit = max_num_seqs
        self.version: PolicyVersion | None = None
        self.generated_tokens = 0
        self.kv_use: float | None = None  # the cache grows with its samples
        self.preemptions = 0
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model_config = AutoConfig.from_pretrained(model.path)
        fix_rope(model_config.get_text_config(), max_model_len=max_model_len)
        self._model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            model.path, config=model_config, dtype=getattr(torch, dtype)
        ).eval()
        self._model.to(self._device)  # type: ignore[arg-type]
        _layers(DynamicCache(config=self._model.config))
        self._places = _places(self._model, model)
        self._end_token_ids = model.end_token_ids
        self._running: dict[str, RunningSample] = {}
        self._waiting: deque[_Row] = deque()
        self._batch = _Batch(self._model, self._device)

    @property
    def running(self) -> Mapping[str, RunningSample]:
        return self._running

    @property
    def started(self) -> int:
        return len(self._batch.rows)

    def add(self, request: SampleRequest) -> None:
        sample = RunningSample(request, self.version)
        noise = torch.Generator(self._device)
        noise.manual_seed(request.seed)
        self._running[request.sample_id] = sample
        self._waiting.append(_Row(sample, noise))

    @torch.inference_mode()
    def step(self) -> list[FinishedSample]:
        # Logits are made and used within one step, so that a token's version is the version that computed its logits.
        self._batch.advance()
        room = max(0, self.limit - len(self._batch.rows))
        if joining := [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]:
            self._batch.join(joining)
        if not self._batch.rows:
            return []
        token_ids, logprobs = _sample(self._batch.logits, self._batch.rows)
        ended: list[FinishedSample] = []
        stays: list[bool] = []
        for row, token_id, logprob in zip(self._batch.rows, token_ids, logprobs, strict=True):
            row.sample.token_ids.append(token_id)
            row.sample.logprobs.append(logprob)
            reason = self._reason_to_end(row.sample)
            stays.append(reason is None)
            if reason is not None:
                ended.append(self._finish(row.sample, reason))
        self.generated_tokens += len(token_ids)
        self._batch.keep(stays)
        return ended

    def abort(self, sample_ids: Collection[str]) -> list[FinishedSample]:
        known = {sample_id for sample_id in sample_ids if sample_id in self._running}
        self._waiting = deque(row for row in self._waiting if row.sample.request.sample_id not in known)
        self._batch.keep([row.sample.request.sample_id not in known for row in self._batch.rows])
        return [self._finish(self._running[sample_id], FinishReason.ABORT) for sample_id in known]

    @torch.inference_mode()
    def load_weights(self, manifest: Manifest, buffer: np.ndarray, *, recompute_kv: bool) -> None:
        for name, tensor in named_tensors(manifest, buffer):
            self._places[name].copy_(tensor)
        self.version = manifest.version
        for sample in self._running.values():
            sample.switch(manifest.version)
        if recompute_kv and self._batch.rows:
            rows, self._batch = self._batch.rows, _Batch(self._model, self._device)
            self._batch.join(rows)

    def close(self) -> None:
        self._running.clear()
        self._waiting.clear()
        self._batch = _Batch(self._model, self._device)

    def _reason_to_end(self, sample: RunningSample) -> FinishReason | None:
        if sample.token_ids[-1] in self._end_token_ids:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(sample.token_ids) >= sample.request.max_tokens else None

    def _finish(self, sample: RunningSample, reason: FinishReason) -> FinishedSample:
        del self._running[sample.request.sample_id]
        return sample.finish(reason)


class _Batch:
    """The running rows and their left-padded cache."""

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.rows: list[_Row] = []
        self.logits = torch.empty(0)
        """[B, V] float32, the logits of each row's next token; stale between steps."""
        self._model = model
        self._device = device
        self._cache: DynamicCache | None = None
        self._mask = torch.empty(0)
        """[B, S] int64: 0 where a row is padded."""

    def join(self, rows: Sequence[_Row]) -> None:
        """Prefills `rows` and appends them."""
        prefixes = [row.prefix for row in rows]
        width = max(map(len, prefixes))
        tokens = torch.tensor([[0] * (width - len(prefix)) + prefix for prefix in prefixes], device=self._device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prefixes], device=self._device)
        cache = DynamicCache(config=self._model.config)
        logits = self._forward(tokens, mask, cache)
        if self._cache is None:
            self._cache, self._mask, self.logits, self.rows = cache, mask, logits, list(rows)
            return
        for mine, theirs in zip(_layers(self._cache), _layers(cache), strict=True):
            mine.keys = _stack(mine.keys, theirs.keys, dim=2)
            mine.values = _stack(mine.values, theirs.values, dim=2)
        self._mask = _stack(self._mask, mask, dim=1)
        self.logits = torch.cat((self.logits, logits))
        self.rows = [*self.rows, *rows]

    def keep(self, stays: Sequence[bool]) -> None:
        """Drops the rows whose entry is false, and the columns that only these rows used."""
        if all(stays):
            return
        if not any(stays):
            self.rows, self._cache = [], None
            return
        chosen = torch.tensor(stays, device=self._device).nonzero()[:, 0]
        mask = self._mask[chosen]
        first = int(mask.any(dim=0).nonzero()[0])
        assert self._cache is not None
        for layer in _layers(self._cache):
            layer.keys = layer.keys[chosen, :, first:]
            layer.values = layer.values[chosen, :, first:]
        self._mask = mask[:, first:]
        self.rows = [row for row, stay in zip(self.rows, stays, strict=True) if stay]

    def advance(self) -> None:
        """Runs every row's newest token."""
        if self.rows:
            assert self._cache is not None
            tokens = torch.tensor([[row.sample.token_ids[-1]] for row in self.rows], device=self._device)
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
            self.logits = self._forward(tokens, self._mask, self._cache)

    def _forward(self, tokens: torch.Tensor, mask: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """[B, S'] tokens after the cached ones -> [B, V] float32 logits of the last column."""
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
        output = self._model(
            input_ids=tokens, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
        )
        return output.logits[:, -1].float()


def _places(causal_lm: PreTrainedModel, folder: ModelFacts) -> dict[str, torch.Tensor]:
    """A view of each pushed tensor's place in the model, by the name in the folder's files: transformers joins experts."""
    own = dict(causal_lm.named_parameters(remove_duplicate=False)) | dict(causal_lm.named_buffers())
    form = find_form(causal_lm, own, folder.tensors)
    parts = ((part.name, part.of(own[name].detach())) for name, found in form.parts.items() for part in found)
    return {name: tensor.detach() for name, tensor in own.items()} | dict(parts)


def _layers(cache: DynamicCache) -> list[Any]:
    """The layers, each with `keys` and `values` of [B, heads, S, D]. Raises ConfigError for any other kind of cache."""
    if odd := [layer for layer in cache.layers if type(layer) is not DynamicLayer]:
        raise ConfigError(
            f"rollout.engine: transformers serves models with full attention only, this one needs {type(odd[0]).__name__};"
            " use vllm"
        )
    return list(cache.layers)


def _stack(upper: torch.Tensor, lower: torch.Tensor, *, dim: int) -> torch.Tensor:
    """Concatenates rows after padding the shorter tensor on the left of its columns, dimension `dim`."""
    width = max(upper.shape[dim], lower.shape[dim])
    behind = (0, 0) * (upper.ndim - 1 - dim)
    padded = (torch.nn.functional.pad(part, (*behind, width - part.shape[dim], 0)) for part in (upper, lower))
    return torch.cat(tuple(padded))


def _sample(logits: torch.Tensor, rows: Sequence[_Row]) -> tuple[list[int], list[float]]:
    """Draws one token a row by exponential races (the same as Gumbel-max) on the row's own generator.

    Returns ids and logprobs in nats under softmax(logits / temperature), within the nucleus where `top_p` is below 1; greedy
    rows report softmax(logits).
    """
    temperatures = torch.tensor([row.sample.request.temperature for row in rows], device=logits.device)
    greedy = temperatures == 0
    logprobs = torch.log_softmax(logits / temperatures.masked_fill(greedy, 1.0)[:, None], dim=-1)
    masses = torch.tensor([row.sample.request.top_p for row in rows], device=logits.device)
    if bool((cut := (masses < 1.0) & ~greedy).any()):
        logprobs[cut] = _nucleus(logprobs[cut], masses[cut])
    noise = torch.ones_like(logprobs)
    for index, row in enumerate(rows):
        if row.sample.request.temperature:
            noise[index].exponential_(generator=row.noise)
    chosen = (logprobs - noise.log()).argmax(dim=-1)
    return chosen.tolist(), logprobs.gather(1, chosen[:, None])[:, 0].tolist()


def _nucleus(logprobs: torch.Tensor, masses: torch.Tensor) -> torch.Tensor:
    """[B, V] nats within the nucleus of each row's mass [B]: the most likely tokens before whose end the mass is not reached.

    Holtzman et al. 2020 (arXiv:1904.09751), section 3.1. The likeliest token always stays; others get -inf.
    """
    ordered, places = logprobs.sort(dim=-1, descending=True)
    mass_before = ordered.exp().cumsum(dim=-1) - ordered.exp()
    ordered = ordered.masked_fill(mass_before >= masses[:, None], -torch.inf)
    return torch.log_softmax(torch.empty_like(ordered).scatter_(1, places, ordered), dim=-1)
