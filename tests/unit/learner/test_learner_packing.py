"""Packing, and the forward pass over packed sequences against one sequence at a time."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from services.learner.batches.batch import TrainSequence
from services.learner.distributed.context_group import ContextGroup
from services.learner.policy import attention
from services.learner.policy.forward import Policy
from services.learner.policy.head import Head
from services.learner.policy.layout import SharedLayout
from services.learner.policy.packing import Packed, pack, sliced
from tests.reference_dapo import reference_logprobs
from tests.unit.learner.learner_cases import make_batch, write_tiny_model

CPU = torch.device("cpu")
TEMPERATURE = 0.7


def _packed(sequences: list[TrainSequence]) -> Packed:
    sequences = sorted(sequences, key=lambda s: -s.input_tokens)
    ones = [1.0] * len(sequences)
    return pack(sequences, step=2, advantages=ones, weights=ones, device=CPU)


def _shared(groups: list[list[TrainSequence]]) -> Packed:
    groups = sorted(groups, key=lambda group: -group[0].prompt_tokens)
    members = [s for group in groups for s in sorted(group, key=lambda s: -s.input_tokens)]
    numbers = [number for number, group in enumerate(groups) for _ in group]
    ones = [1.0] * len(members)
    return pack(members, step=2, advantages=ones, weights=ones, device=CPU, groups=numbers)


def _tiny_sequence(token_ids: list[int], prompt_tokens: int) -> TrainSequence:
    completion = len(token_ids) - prompt_tokens
    return TrainSequence(
        token_ids=np.array(token_ids, np.int32),
        prompt_tokens=prompt_tokens,
        rollout_logprobs=-np.arange(completion, dtype=np.float32),
        versions=np.full(completion, 1, np.int32),
        reward=0.0,
        truncated=False,
    )


def test_two_sequences_are_laid_end_to_end_and_only_completions_are_targets() -> None:
    packed = _packed([_tiny_sequence([5, 6, 7, 0, 0], 2), _tiny_sequence([8, 9, 0], 1)])
    assert packed.input_ids.tolist() == [[5, 6, 7, 0, 8, 9]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 0, 1]]
    assert packed.predictors.tolist() == [1, 2, 3, 4, 5]
    assert packed.targets.tolist() == [7, 0, 0, 9, 0]
    assert packed.rollout_logprobs.tolist() == [0, -1, -2, 0, -1]
    assert packed.ages.tolist() == [1] * 5


def test_a_shared_prompt_is_laid_out_once_and_predicts_the_first_token_of_each_completion() -> None:
    packed = _shared(
        [[_tiny_sequence([5, 6, 7, 1, 0], 2), _tiny_sequence([5, 6, 9], 2)], [_tiny_sequence([8, 3, 0], 1)]]
    )
    assert packed.input_ids.tolist() == [[5, 6, 8, 7, 1, 3]]
    assert packed.position_ids.tolist() == [[0, 1, 0, 2, 3, 1]]
    assert packed.predictors.tolist() == [1, 3, 4, 1, 2, 5]
    assert packed.targets.tolist() == [7, 1, 0, 9, 3, 0]
    assert packed.sequence.tolist() == [0, 0, 0, 1, 2, 2]


def test_observed_tokens_are_read_and_never_predicted_however_prompts_lie() -> None:
    episode = replace(
        _tiny_sequence([5, 6, 7, 1, 2, 3], 2),
        observed=np.array([False, True, True, False]),
        rollout_logprobs=np.array([-1.0, -2.0], np.float32),
        versions=np.array([0, 1], np.int32),
    )
    other = _tiny_sequence([5, 6, 9], 2)
    plain, shared = _packed([episode, other]), _shared([[episode, other]])
    assert plain.input_ids.tolist() == [[5, 6, 7, 1, 2, 5, 6]]
    assert shared.input_ids.tolist() == [[5, 6, 7, 1, 2]]
    assert plain.predictors.tolist() == [1, 4, 6]
    assert shared.predictors.tolist() == [1, 4, 1]
    for packed in (plain, shared):
        assert packed.targets.tolist() == [7, 3, 9]
        assert packed.ages.tolist() == [2, 1, 1]
        assert packed.sequence.tolist() == [0, 0, 1]


@pytest.mark.parametrize("size", [2, 3, 64])
def test_slices_of_a_row_have_each_token_and_each_target_once_beside_its_predictor(size: int) -> None:
    groups = [list(group.sequences) for group in make_batch(groups=3).groups]
    for row in (_shared(groups), _packed([s for group in groups for s in group])):
        slices = [
            sliced(row, ContextGroup(rank=rank, size=size, data_rank=0, data_ranks=1, group=None))
            for rank in range(size)
        ]
        tokens = row.input_ids.shape[1]
        assert len({one.input_ids.shape for one in slices}) == 1
        for name in ("input_ids", "position_ids"):
            joined = torch.cat([getattr(one, name) for one in slices], 1)
            assert torch.equal(joined[:, :tokens], getattr(row, name)), name
            assert not joined[:, tokens:].any()
        places = torch.cat([one.part.here for one in slices if one.part])
        assert torch.equal(places.sort()[0], torch.arange(len(row.targets)))
        for name in ("targets", "sequence", "weights", "ages", "rollout_logprobs", "advantages"):
            assert torch.equal(torch.cat([getattr(one, name) for one in slices]), getattr(row, name)[places]), name
        read = torch.cat([one.input_ids[0, one.predictors] for one in slices])
        assert torch.equal(read, row.input_ids[0, row.predictors[places]])


def test_targets_come_from_lengths_and_not_from_token_values() -> None:
    padding_everywhere = _tiny_sequence([0, 0, 0, 0], 1)
    assert _packed([padding_everywhere]).targets.tolist() == [0, 0, 0]


def test_blocks_gather_and_scatter_back_every_token() -> None:
    sequences = [s for s in make_batch(groups=5).sequences if s.input_tokens]
    packed = _packed(sequences)
    tokens = torch.arange(packed.input_ids.shape[1])
    again = torch.cat([tokens[block.gather][block.scatter] for block in packed.layout.blocks])
    assert torch.equal(again, tokens)


@pytest.fixture(scope="module", params=[(True, 1), (False, 3)], ids=["tied-gqa", "untied-mha"])
def model_path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    tied, kv_heads = request.param
    return write_tiny_model(tmp_path_factory.mktemp("model"), tied=tied, kv_heads=kv_heads)


class _Sines:
    """A loss of no meaning whose gradient is easy to have twice."""

    wants_preview = False

    def preview(self, logprobs: torch.Tensor) -> None:
        raise AssertionError("not asked for")

    def __call__(self, logprobs: torch.Tensor, where: slice) -> torch.Tensor:
        return logprobs.sin().sum()


def _head(*, temperature: float = TEMPERATURE, chunk_tokens: int = 64) -> Head:
    return Head(temperature=temperature, chunk_tokens=chunk_tokens, float32=False)


def _one_by_one(stock: torch.nn.Module, sequences: list[TrainSequence]) -> torch.Tensor:
    parts = [(s.token_ids[: s.prompt_tokens].tolist(), s.token_ids[s.prompt_tokens :].tolist()) for s in sequences]
    return torch.cat([reference_logprobs(stock, prompt, completion, TEMPERATURE) for prompt, completion in parts])


@pytest.mark.parametrize("chunk_tokens", [7, 4096])
def test_packed_logprobs_and_their_gradients_equal_those_of_one_sequence_at_a_time(
    model_path: Path, chunk_tokens: int
) -> None:
    stock = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32)
    packing = AutoModelForCausalLM.from_pretrained(model_path, dtype=torch.float32, attn_implementation=attention.NAME)
    sequences = sorted(make_batch(groups=4).sequences, key=lambda s: -s.input_tokens)
    policy = Policy(packing, _head(chunk_tokens=chunk_tokens))
    loss, logprobs, entropies = policy(_packed(sequences), _Sines())
    one_by_one = _one_by_one(stock, sequences)
    assert torch.allclose(logprobs, one_by_one, atol=2e-5)
    assert entropies.shape == logprobs.shape
    assert torch.equal(policy(_packed(sequences), None)[1], logprobs)
    loss.backward()
    one_by_one.sin().sum().backward()
    for (name, ours), theirs in zip(packing.named_parameters(), stock.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        assert torch.allclose(ours.grad, theirs.grad, rtol=1e-4, atol=1e-4 * float(theirs.grad.abs().max())), name


def test_shared_prompts_change_neither_logprobs_nor_gradients(tmp_path: Path) -> None:
    model_path = write_tiny_model(tmp_path, initializer_range=0.1)  # so calm that float32 keeps seven digits
    batch = make_batch(groups=5)
    found = []
    for shared in (False, True):
        causal_lm = AutoModelForCausalLM.from_pretrained(
            model_path, dtype=torch.float32, attn_implementation=attention.NAME
        )
        packed = _shared([list(group.sequences) for group in batch.groups]) if shared else _packed(batch.sequences)
        loss, logprobs, _ = Policy(causal_lm, _head())(packed, _Sines())
        loss.backward()
        in_turn = torch.argsort(packed.targets * 1000 + packed.rollout_logprobs * 100)
        found.append((logprobs[in_turn], torch.cat([p.grad.flatten() for p in causal_lm.parameters()])))
    (plain, gradient), (shared, other) = found
    assert torch.allclose(plain, shared, atol=1e-6)
    assert (gradient - other).norm() <= 1e-6 * gradient.norm()


def test_the_entropy_of_a_uniform_distribution_is_the_logarithm_of_the_vocabulary(model_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation=attention.NAME)
    with torch.no_grad():
        model.get_output_embeddings().weight.zero_()
    _, _, entropies = Policy(model, _head(temperature=1.0))(_packed(make_batch().sequences), None)
    assert torch.allclose(entropies, torch.full_like(entropies, float(np.log(40))))


@pytest.mark.parametrize("window", [1, 3, 6, 200])
def test_a_sliding_window_hides_the_same_tokens_as_in_the_stock_model(tmp_path: Path, window: int) -> None:
    write_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    windows = {"use_sliding_window": True, "sliding_window": window, "layer_types": ["sliding_attention"] * 2}
    (tmp_path / "config.json").write_text(json.dumps(config | windows))
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    packing = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation=attention.NAME)
    sequences = sorted(make_batch(groups=4).sequences, key=lambda s: -s.input_tokens)
    _, logprobs, _ = Policy(packing, _head())(_packed(sequences), None)
    assert torch.allclose(logprobs, _one_by_one(stock, sequences), atol=2e-5)
    groups = make_batch(groups=4).groups
    _, shared, _ = Policy(packing, _head())(_shared([list(group.sequences) for group in groups]), None)
    in_turn = sorted(groups, key=lambda group: -group.sequences[0].prompt_tokens)
    samples = [s for group in in_turn for s in sorted(group.sequences, key=lambda s: -s.input_tokens)]
    assert torch.allclose(shared, _one_by_one(stock, samples), atol=2e-5)


def test_the_keys_and_boundaries_that_a_variable_length_kernel_gets_are_those_of_the_blocks() -> None:
    layout = SharedLayout(np.array([5, 3]), [np.array([4, 1, 0]), np.array([2])], CPU)
    torch.manual_seed(0)
    query, key, value = torch.randn(3, 1, 2, 15, 8, dtype=torch.float64)
    blocks, _ = attention.packed_attention(torch.nn.Identity(), query, key, value, None, layout=layout)
    q, k, v = query[0], *(layout.keys(states[0].transpose(0, 1)).transpose(0, 1) for states in (key, value))
    parts = []
    for (start, stop), (first, last) in zip(
        pairwise(layout.boundaries.tolist()), pairwise(layout.key_boundaries.tolist()), strict=True
    ):
        seen = torch.ones(stop - start, last - first, dtype=torch.bool).tril(last - first - (stop - start))
        scores = (q[:, start:stop] @ k[:, first:last].mT / 8**0.5).masked_fill(~seen, -torch.inf)
        parts.append(scores.softmax(-1) @ v[:, first:last])
    assert torch.allclose(blocks[0], torch.cat(parts, 1).transpose(0, 1))
    assert layout.longest_keys == max(b - a for a, b in pairwise(layout.key_boundaries.tolist()))
