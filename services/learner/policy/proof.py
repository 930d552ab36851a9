"""Whether the learner computes a model as transformers does, proved before anything is trained.

A few random sequences of unequal length go one at a time through the stock model with eager attention, and packed through
the policy, by the learner's own functions and called as the trainer calls it. In float32 the log-probabilities have to
agree. A model that agrees only with one sequence a row (a recurrent or convolutional state runs on from one packed sequence
into the next, or the model has an attention of its own) is trained that way, and the log says what that costs. A model that
agrees in neither way is refused. Where the packed form agrees, so must the form in which samples share a group's prompt, or
the form is not used.

Rank 0 proves for all ranks, because all have to lay out a step alike. The others wait for its verdict in a collective.
"""

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import structlog
import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from services.learner.batches.batch import TrainSequence
from services.learner.distributed.context_group import ALONE, ContextGroup
from services.learner.distributed.ranks import Ranks
from services.learner.policy import attention
from services.learner.policy.forward import Policy
from services.learner.policy.head import Head
from services.learner.policy.model_config import architecture, config_parts, load_weights, one_line
from services.learner.policy.packing import pack, sliced
from services.learner.policy.reduced_model import limits_that_bite, random_model, reduced_config
from sluice.config.schema import Config
from sluice.errors import ConfigError

log = structlog.get_logger(__name__)

TOLERANCE_NATS = 1e-3
"""Largest difference of a log-probability in float32. Right models differ by 2e-5, wrong ones by .01 nats and more."""

SMALL_PARAMETERS = 300_000_000
"""Up to this size the model itself is proved; of a larger model a copy of its configuration with few layers."""

LENGTHS = (61, 23, 9, 2)
"""Tokens of the random sequences."""

LONGEST = 4200
"""No sequence is longer, whatever the original context: eager attention holds the scores of all pairs of tokens."""

DRAWS = 2
"""A router that rounds the other way moves a token by much, but not in two draws of tokens; a fault shows in every draw."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What a proof found."""

    packed: float
    """Largest difference of a log-probability in nats, all sequences packed into one; NaN: it cannot be computed."""
    rows: float
    """The same with one sequence a row; NaN: not tried, or it cannot be computed."""
    shared: float = math.nan
    """The same, packed, with the prompt of each group laid out once; NaN: not tried, or it cannot be computed."""
    reason: str = ""
    """Why the packed form cannot be computed; empty where it can."""

    @property
    def passes(self) -> bool:
        """Whether the learner can train the model."""
        return self.packed <= TOLERANCE_NATS or self.needs_rows

    @property
    def needs_rows(self) -> bool:
        """Whether the learner must lay out one sequence a row."""
        return not self.packed <= TOLERANCE_NATS and self.rows <= TOLERANCE_NATS

    @property
    def can_share(self) -> bool:
        """Whether samples can share a group's prompt."""
        return self.shared <= TOLERANCE_NATS

    @property
    def in_words(self) -> str:
        """What is wrong with the packed form."""
        return f"cannot be packed ({self.reason})" if self.reason else f"differs by {self.packed:.2g} nats when packed"


@dataclass(frozen=True, kw_only=True, slots=True)
class Forms:
    """How a proved model may be laid out."""

    rows: bool
    """It has to be one sequence a row."""
    shares: bool
    """The samples of a group may share the group's prompt."""


def prove(config: Config, model_config: PreTrainedConfig, *, head: Head, parameters: int, ranks: Ranks) -> Forms:
    """How the model of `model.path` is laid out. Collective.

    head: as the policy has it; parameters: their number. Raises ConfigError, on every rank.
    """
    texts = [""] * 4
    if ranks.leads:
        started = time.perf_counter()
        name = architecture(model_config)
        try:
            verdict = _prove_folder(config, model_config, head=head, parameters=parameters, device=ranks.device)
        except ConfigError as error:  # for the other ranks too
            texts[0] = str(error)
        else:
            refusal = "" if verdict.passes else refusal_of(verdict, name=name, path=config.model.path)
            texts = [refusal, "rows" * verdict.needs_rows, verdict.in_words, "shares" * verdict.can_share]
            nats = verdict.rows if verdict.needs_rows else verdict.packed
            log.info(
                "model_proved",
                architecture=name,
                largest_difference_nats=nats,
                shares_prompts=verdict.can_share,
                s=time.perf_counter() - started,
            )
    refusal, rows, packed, shares = ranks.share_texts(texts)
    if refusal:
        raise ConfigError(refusal)
    if rows and ranks.leads:
        log.warning(
            "one_sequence_a_row",
            architecture=architecture(model_config),
            why=packed,
            cost="every micro-batch is padded to its longest sequence, and learner.max_tokens_per_micro_batch counts padding",
        )
    return Forms(rows=bool(rows), shares=bool(shares))


def refusal_of(verdict: Verdict, *, name: str, path: str) -> str:
    """The line that refuses a model."""
    rows = "cannot be computed" if math.isnan(verdict.rows) else f"differs by {verdict.rows:.2g} nats"
    return (
        f"model.path: {path} ({name}) is not computed as transformers computes it: {verdict.in_words}, and with one sequence "
        f"a row {rows}, where {TOLERANCE_NATS:g} nats of a log-probability are allowed; docs/models.md lists what is trained"
    )


def compare(causal_lm: PreTrainedModel, head: Head, *, checkpointed: bool = False, long: int | None = None) -> Verdict:
    """The proof of one model in float32; afterwards the model has another attention.

    checkpointed: compute activations again in the backward pass. long: tokens of one more sequence.
    """
    if checkpointed:
        causal_lm.gradient_checkpointing_enable({"use_reentrant": False})
    packed, reason = difference(causal_lm, head, long=long, form="packed")
    if packed <= TOLERANCE_NATS:
        shared, _ = difference(causal_lm, head, long=long, form="shared")
        return Verdict(packed=packed, rows=math.nan, shared=shared)
    rows, why = difference(causal_lm, head, long=long, form="rows")
    return Verdict(packed=packed, rows=rows, reason=reason or why)


def _prove_folder(
    config: Config, model_config: PreTrainedConfig, *, head: Head, parameters: int, device: torch.device
) -> Verdict:
    causal_lm = model_to_prove(config, model_config, small=parameters > SMALL_PARAMETERS, device=device)
    checkpointed = config.learner.gradient_checkpointing
    return compare(causal_lm, head, checkpointed=checkpointed, long=_beyond_original(model_config))


def model_to_prove(
    config: Config, model_config: PreTrainedConfig, *, small: bool, device: torch.device
) -> PreTrainedModel:
    """The model of `model.path` with windows shorter than the sequences; `small`: a small copy, if there can be one."""
    short = copy.deepcopy(model_config)
    for part in config_parts(short):
        limits_that_bite(part)
    causal_lm: Any = _small_copy(short, seed=config.run.seed) if small else None
    if causal_lm is None:
        causal_lm = load_weights(config.model.path, short, attention="eager")
    return causal_lm.to(device)


def _small_copy(model_config: PreTrainedConfig, *, seed: int) -> PreTrainedModel | None:
    """A small random model of the same architecture; None where the configuration cannot be made smaller."""
    try:
        return random_model(reduced_config(model_config), seed=seed)
    except Exception as error:  # noqa: BLE001 - checks of transformers' own, of any kind; the whole model is proved then
        log.warning("no_small_copy", architecture=architecture(model_config), error=one_line(error))
        return None


def _beyond_original(model_config: PreTrainedConfig) -> int | None:
    """A length beyond `original_max_position_embeddings`, where the model has one that can be reached."""
    found = []
    for part in config_parts(model_config):
        rope: Any = getattr(part, "rope_parameters", None) or {}
        places = (vars(part), rope, *(value for value in rope.values() if isinstance(value, dict)))
        found += [place.get("original_max_position_embeddings") or 0 for place in places]
    longest = max(found, default=0)
    return longest + 5 if 0 < longest + 5 <= LONGEST else None


def _sequences(causal_lm: PreTrainedModel, long: int | None, *, seed: int) -> list[TrainSequence]:
    """Random sequences, longest first, as the packer takes them; the first token of each is the prompt."""
    rng = np.random.default_rng(seed)
    head: Any = causal_lm.get_output_embeddings()
    vocabulary = int(head.weight.shape[0])
    limit = getattr(causal_lm.config.get_text_config(), "max_position_embeddings", None) or max(LENGTHS)
    lengths = sorted({min(length, limit) for length in (*LENGTHS, *([long] if long else []))}, reverse=True)
    return [
        TrainSequence(
            token_ids=rng.integers(0, vocabulary, length + 1).astype(np.int32),
            prompt_tokens=1,
            rollout_logprobs=np.zeros(length, np.float32),
            versions=np.zeros(length, np.int32),
            reward=0.0,
            truncated=False,
        )
        for length in lengths
    ]


def _grouped(sequences: Sequence[TrainSequence]) -> tuple[list[TrainSequence], list[int]]:
    """Groups of three from the longest random sequences, and the number of each one's group: half of each is the prompt.

    The samples are the whole rest, most of the rest in another order, and one token.
    """
    samples, groups = [], []
    for number, sequence in enumerate(sequences[:-2]):
        prompt, rest = np.split(sequence.token_ids, [len(sequence.token_ids) // 2])
        for completion in (rest, rest[::-1][: 1 + 3 * len(rest) // 4], rest[-1:]):
            blank = np.zeros(len(completion), np.float32)
            samples.append(
                replace(
                    sequence,
                    token_ids=np.concatenate([prompt, completion]),
                    prompt_tokens=len(prompt),
                    rollout_logprobs=blank,
                    versions=blank.astype(np.int32),
                )
            )
            groups.append(number)
    return samples, groups


def difference(
    causal_lm: PreTrainedModel,
    head: Head,
    *,
    long: int | None,
    form: Literal["packed", "shared", "rows"],
    context: ContextGroup = ALONE,
) -> tuple[float, str]:
    """The smaller difference of two draws of tokens in nats and no reason, or NaN and the reason why there is none.

    Collective in a `context` of several ranks, all of which compute their slices and get the same difference.
    """
    found = []
    try:
        for seed in range(DRAWS):
            sequences, groups = _sequences(causal_lm, long, seed=seed), None
            if form == "shared":
                sequences, groups = _grouped(sequences)
            truth = _one_at_a_time(causal_lm, sequences, temperature=head.temperature)
            set_attention(causal_lm, rows=form == "rows")
            policy = Policy(causal_lm, head, rows=form == "rows", context=context)
            found.append(_largest(policy, sequences, groups, truth))
            if found[-1] <= TOLERANCE_NATS:
                break
    except Exception as error:  # noqa: BLE001 - a model may stumble over such a call in any way; the refusal quotes it
        return math.nan, one_line(error)
    return min(found), "" if math.isfinite(min(found)) else "its log-probabilities are not finite"


@torch.no_grad()
def _one_at_a_time(causal_lm: PreTrainedModel, sequences: Sequence[TrainSequence], *, temperature: float) -> Tensor:
    """float32[M] nats of all completion tokens, by the stock model."""
    causal_lm.set_attn_implementation("eager")
    causal_lm.eval()
    parts = []
    for sequence in sequences:
        ids = torch.from_numpy(sequence.token_ids.astype(np.int64)).to(causal_lm.device)
        logits = causal_lm(input_ids=ids[None, :-1], use_cache=False).logits[0, sequence.prompt_tokens - 1 :].float()
        targets = ids[sequence.prompt_tokens :, None]
        parts.append(torch.log_softmax(logits / temperature, -1).gather(-1, targets)[:, 0])
    return torch.cat(parts)


def _largest(policy: Policy, sequences: list[TrainSequence], groups: list[int] | None, truth: Tensor) -> float:
    """The largest difference in nats of the two calls that the trainer makes: with a loss, and without."""
    ones = [1.0] * len(sequences)
    whole = pack(sequences, step=0, advantages=ones, weights=ones, device=truth.device, groups=groups)
    packed = sliced(whole, policy.context)
    _, trained, _ = policy(packed, _AnyLoss())
    _, scored, _ = policy(packed, None)
    trained, scored = packed.whole(trained), packed.whole(scored)
    return float(torch.maximum((trained - truth).abs(), (scored - truth).abs()).max())


def set_attention(causal_lm: PreTrainedModel, *, rows: bool) -> None:
    """The attention that goes with a layout: the learner's over packed sequences, else transformers' own."""
    for name in ("sdpa", "eager") if rows else (attention.NAME,):
        try:
            causal_lm.set_attn_implementation(name)
            return
        except ValueError:
            if name == "eager":
                raise


class _AnyLoss:
    """A loss that makes the policy take the path of training."""

    wants_preview = False

    def preview(self, logprobs: Tensor) -> None:
        raise AssertionError("not asked for")

    def __call__(self, logprobs: Tensor, where: slice) -> Tensor:
        return logprobs.sum()
