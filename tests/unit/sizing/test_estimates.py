"""Memory, disk and network against sums worked out by hand, for a model of 1,400 parameters."""

import pytest

from sluice.config.load import load_config
from sluice.config.schema import Config
from sluice.sizing import activations, learner, rollout, storage
from sluice.sizing.config_json import shape_of
from sluice.sizing.learner import Work
from sluice.sizing.memory_parts import Estimate, gigabytes, parse_bytes
from sluice.sizing.verdict import cautions, refusals
from tests.unit.sizing.test_config_json import LLAMA

SHAPE = shape_of(LLAMA)
TWO_TOGETHER = ["launch.learner_nproc_per_node=2", "learner.context_parallel_size=2"]
WORK = Work(tokens=10, targets=6, several=True)


def recipe(*overrides: str) -> Config:
    sizes = ["data.max_prompt_length=10", "data.max_response_length=20", "data.train_batch_size=4", "rollout.n=2"]
    return load_config(None, overrides=["model.path=m", "data.train_files=[a.jsonl]", *sizes, *overrides])


def sizes(estimate: Estimate) -> list[int]:
    return [part.size_bytes for part in estimate.parts]


def test_a_rank_in_bfloat16_on_two_ranks_peaks_in_the_backward_pass() -> None:
    found = learner.rank_memory(SHAPE, recipe("launch.learner_nproc_per_node=2"), work=WORK)
    # A layer keeps of a token: 2 norms (float32 input, normed input, result of 8), q k v and the result of attention
    # (8 + 4 + 4 + 8) and log-sum-exps (2 float32), and 4 tensors of the feed-forward part; the final norm and 2 x 4 cosines.
    a_token = 2 * (4 * 8 + 2 * 8 + 2 * 8) + 2 * 24 + 8 + 2 * 4 * 16 + (4 * 8 + 2 * 8 + 2 * 2 * 4)
    assert sizes(found) == [
        4 * 1400 // 2,
        8 * 1400 // 2,
        4 * 1400 // 2,
        10 * a_token,
        2 * 808,  # embedding, which is the head, and the final norm
        10 * 2 * (2 * 16 + 3 * 8),
        2 * 2 * 592,  # a layer's weights and the buffer in which they arrive
        2 * 800 + 2 * 592 + 4 * 592,  # the head's gradient; the layer's, and its float32 copy
    ]


def test_key_value_heads_are_repeated_until_ranks_that_compute_together_divide_them() -> None:
    alone, two, four = (
        activations.attention_bytes(SHAPE, element=2, packed_kernel=True, context=ranks) for ranks in (1, 2, 4)
    )
    assert (two - alone, four - alone) == (2 * 2 * 4, 3 * 2 * 2 * 4)  # one head of 4 becomes two and four


def test_a_rank_with_a_large_vocabulary_peaks_at_its_head() -> None:
    wide = shape_of(LLAMA | {"vocab_size": 10_000})
    found = learner.rank_memory(wide, recipe("model.dtype=float32"), work=Work(tokens=10, targets=10, several=False))
    assert [part.name for part in found.parts][-2:] == [
        "the head's hidden states and gradient",
        "logits of 10 tokens x vocabulary",
    ]
    assert sizes(found)[-2:] == [2 * 4 * 10 * 8 + 4 * 80_000, 2 * 4 * 10 * 10_000]
    half = learner.rank_memory(wide, recipe(), work=WORK)
    assert sizes(half)[-1] == 4 * 6 * 10_000 + 2 * (6 * 10_000 + 80_000)  # logits in bfloat16 too, a product of [V, D]


def test_gradient_checkpointing_keeps_the_inputs_of_layers_and_computes_one_again() -> None:
    plain = learner.rank_memory(SHAPE, recipe(), work=Work(tokens=1000, targets=6, several=True))
    saved = learner.rank_memory(
        SHAPE, recipe("learner.gradient_checkpointing=true"), work=Work(tokens=1000, targets=6, several=True)
    )
    kept, again = ({part.name: part.size_bytes for part in estimate.parts} for estimate in (plain, saved))
    assert kept["activations of 1,000 tokens"] == 1000 * (312 + 64)
    assert again["activations of 1,000 tokens, checkpointed"] == 1000 * (16 + 64)
    assert again["one layer's activations again and gradients"] == 1000 * (312 + 112)


def test_lora_trains_adapters_and_offload_moves_the_states_to_the_host() -> None:
    adapted = recipe("model.lora_rank=1", "model.target_modules=[q_proj]")
    assert learner.state_bytes(SHAPE, adapted) == {"weights": 4 * 1416, "moments": 8 * 16, "gradients": 4 * 16}
    away = recipe("learner.cpu_offload=true")
    assert not any("moments" in part.name for part in learner.rank_memory(SHAPE, away, work=WORK).parts)
    host = {part.name: part.size_bytes for part in storage.learner_host_memory(SHAPE, away).parts}
    assert host["weights, moments and gradients"] == 16 * 1400


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        # 4 groups of 2 sequences of 29 input tokens, 232 in all
        (["learner.max_tokens_per_micro_batch=100"], Work(tokens=100, targets=69, several=True)),
        (["learner.max_tokens_per_micro_batch=1000"], Work(tokens=232, targets=160, several=False)),
        (
            ["learner.max_tokens_per_micro_batch=1000", "launch.learner_nproc_per_node=2"],
            Work(tokens=116, targets=80, several=False),
        ),
        (["learner.max_tokens_per_micro_batch=5"], Work(tokens=29, targets=20, several=True)),  # one whole sequence
        (  # half of one, which may have completion tokens alone
            ["learner.max_tokens_per_micro_batch=5", *TWO_TOGETHER],
            Work(tokens=15, targets=15, several=True),
        ),
        (["learner.max_tokens_per_micro_batch=100", *TWO_TOGETHER], Work(tokens=100, targets=100, several=True)),
    ],
)
def test_a_micro_batch_has_the_budget_or_what_there_is_or_one_sequence(overrides: list[str], expected: Work) -> None:
    assert learner.largest_work(recipe(*overrides)) == expected


def test_a_rollout_shares_its_weights_out_and_gives_the_rest_to_the_cache() -> None:
    config = recipe("rollout.tensor_parallel_size=2", "rollout.max_num_seqs=10")
    used = 2 * 700 + 2 * 4 * 10 * 100 + 16_384 * 2 * (4 * 8 + 3 * 8)
    assert rollout.gpu_memory(SHAPE, config).total_bytes == used
    cache = rollout.kv_cache(SHAPE, config, gpu_bytes=10_000_000)
    assert (cache.bytes_a_token, cache.sequence_bytes) == (2 * 8, 30 * 16)
    assert cache.room_bytes == 8_500_000 - used
    assert cache.sequences == pytest.approx((8_500_000 - used) / 480)
    assert rollout.most_bytes(SHAPE, config, gpu_bytes=10_000_000) == 8_500_000
    fixed = recipe("rollout.tensor_parallel_size=2", "rollout.max_num_seqs=10", "rollout.kv_cache_bytes=960")
    assert rollout.kv_cache(SHAPE, fixed, gpu_bytes=None).sequences == 2.0
    assert rollout.most_bytes(SHAPE, fixed, gpu_bytes=10_000_000) == used + 960


def test_host_disk_and_network() -> None:
    config = recipe("launch.learner_nproc_per_node=2", "run.total_steps=50", "learner.export_every_steps=20")
    assert sizes(storage.loading_memory(SHAPE, config)) == [4 * 1400]
    mixture = shape_of(LLAMA | {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2})
    assert sizes(storage.loading_memory(mixture, config)) == [4 * mixture.parameters]
    assert sizes(storage.learner_host_memory(SHAPE, config)) == [2 * 2 * 1400, 2 * 2800, 12 * 1400]
    # 3 checkpoints; 41 batches of 4 x 2 completions of 20 tokens; RUN/model; 2 exports
    assert sizes(storage.disk(SHAPE, config)) == [3 * 12 * 1400, 41 * 4 * 2 * 20 * 10, 2800, 2 * 2800]
    assert storage.push_bytes(SHAPE, config) == 2800
    alone = recipe("model.lora_rank=2", "model.target_modules=[o_proj]", "weights.lora=adapter")
    assert storage.push_bytes(SHAPE, alone) == 4 * 2 * 16
    across = recipe("rollout.tensor_parallel_size=2")
    assert sizes(storage.rollout_host_memory(SHAPE, across)) == [2800, 2800 + 1400, (160 + 2 * 304) << 20]
    whole = recipe("weights.encoding=dense")
    assert sizes(storage.rollout_host_memory(SHAPE, whole)) == [2800]
    assert sizes(storage.learner_host_memory(SHAPE, whole)) == [2 * 2 * 1400, 12 * 1400]


def test_what_fits_is_not_refused_and_what_cannot_fit_is_with_the_way_out() -> None:
    config = recipe("rollout.max_num_seqs=10", "model.dtype=float32", "rollout.gpu_memory_utilization=1")
    need = max(learner.rank_memory(SHAPE, config).total_bytes, rollout.gpu_memory(SHAPE, config).total_bytes)
    assert list(refusals(SHAPE, config, gpu_bytes=round(need) + 5000, shared=False)) == []
    [line] = refusals(SHAPE, config, gpu_bytes=round(need) + 5000, shared=True)
    assert line.startswith("--gpus: must be more than the learner's ranks (1), so that rollouts have GPUs of their own")
    assert "a rank and a rollout do not fit one GPU together" in line
    said = list(refusals(SHAPE, config, gpu_bytes=10_000, shared=False))
    assert said[0].startswith("--gpu-memory: a rank of the learner needs ")
    assert "has 10 kB; most of it: " in said[0]
    assert said[1].startswith("--gpu-memory: a GPU of a rollout needs ")


def test_a_cache_without_room_for_one_sequence_is_refused_and_one_without_room_for_all_is_told() -> None:
    config = recipe("rollout.max_num_seqs=10")
    used = rollout.gpu_memory(SHAPE, config).total_bytes
    tight = round((used + 400) / 0.85)
    [line] = refusals(SHAPE, config, gpu_bytes=tight, shared=False)
    assert "one sequence of 30 tokens needs 0.48 kB" in line
    told = list(cautions(SHAPE, config, gpu_bytes=round((used + 480 * 3.5) / 0.85)))
    assert any("rollout.max_num_seqs is 10, and 3 sequences of full length fit" in note for note in told)


@pytest.mark.parametrize(
    ("text", "size"),
    [("80GB", 80 * 10**9), ("80 gb", 80 * 10**9), ("79.5GiB", round(79.5 * 2**30)), ("1T", 10**12), ("1000", 1000)],
)
def test_sizes_are_read(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "8 apples", "1e9", "9" * 40])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be a size such as 80GB or 80GiB, got"):
        parse_bytes(text)


def test_sizes_are_written_for_people() -> None:
    assert [gigabytes(n) for n in (480, 13e6, 21.44e9, 122e9, 1.05e12)] == [
        "0.48 kB",
        "13 MB",
        "21.4 GB",
        "122 GB",
        "1.05 TB",
    ]
