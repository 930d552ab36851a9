"""What every engine promises, checked against plain forward passes of the same weights in float32."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from services.rollout.concurrency import Concurrency
from services.rollout.engine import Engine, FinishedSample, FinishReason, SampleRequest, Span
from services.rollout.engine_loop import EngineLoop, Event, InFlight
from services.rollout.model_files import read_model
from sluice.policy_version import PolicyVersion
from sluice.testing import assert_eventually

CAPACITY = 48
PROMPT = (5, 6, 7, 8)
LONG_PROMPT = tuple(3 + index % 40 for index in range(70))
TOLERANCE_NATS = 1e-4


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("transformers", marks=pytest.mark.integration),
        pytest.param("vllm", marks=pytest.mark.e2e),
        pytest.param("vllm, scheduling beside its steps", marks=pytest.mark.e2e),
    ],
)
def loaded_engine(request: pytest.FixtureRequest, model_path: Path) -> Iterator[Engine]:
    model = read_model(model_path)
    overlaps = request.param.endswith("steps")
    if request.param == "transformers":
        from services.rollout.adapters.transformers_engine import TransformersEngine

        engine: Engine = TransformersEngine(model, dtype="float32", max_model_len=128, max_num_seqs=CAPACITY)
    else:
        from services.rollout.adapters.vllm_engine import VllmEngine
        from tests.contract.cpu_streams import streams_of_a_cpu

        with streams_of_a_cpu() if overlaps else contextlib.nullcontext():
            engine = VllmEngine(
                model,
                dtype="float32",
                max_model_len=128,
                max_num_seqs=CAPACITY,
                tensor_parallel_size=1,
                gpu_memory_utilization=0.5,
                enforce_eager=False,
                kv_cache_bytes=4 << 20,  # 56 blocks of 32 tokens: full when most of CAPACITY samples need a second
                async_scheduling=overlaps,
            )
            yield engine
            engine.close()
        return
    yield engine
    engine.close()


@pytest.fixture
def engine(loaded_engine: Engine, model_path: Path) -> Iterator[Engine]:
    """Idle, and at version a0 with the folder's weights."""
    from tests.tiny_model import load, snapshot

    first = snapshot(load(model_path), 0)
    loaded_engine.load_weights(first.manifest, first.buffer, recompute_kv=False)
    yield loaded_engine
    loaded_engine.abort(list(loaded_engine.running))
    loaded_engine.limit = loaded_engine.capacity


def request(
    sample_id: str,
    *,
    seed: int = 0,
    temperature: float = 1.0,
    max_tokens: int = 24,
    prompt: tuple[int, ...] = PROMPT,
    top_p: float = 1.0,
) -> SampleRequest:
    return SampleRequest(
        sample_id=sample_id,
        prompt_token_ids=prompt,
        seed=seed,
        temperature=temperature,
        max_tokens=max_tokens,
        top_p=top_p,
    )


def finish(engine: Engine) -> dict[str, FinishedSample]:
    done: dict[str, FinishedSample] = {}
    while engine.running:
        done |= {sample.sample_id: sample for sample in engine.step()}
    return done


def draw(engine: Engine, *requests: SampleRequest) -> list[FinishedSample]:
    for one in requests:
        engine.add(one)
    done = finish(engine)
    return [done[one.sample_id] for one in requests]


def until_tokens(engine: Engine, sample_id: str, tokens: int) -> None:
    while len(engine.running[sample_id].token_ids) < tokens:
        engine.step()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4, 0.0])
def test_logprobs_are_those_of_the_distribution_that_was_sampled_from(
    engine: Engine, model_path: Path, temperature: float
) -> None:
    from tests.tiny_model import load, logprobs

    model = load(model_path)
    for sample in draw(engine, *(request(f"s{seed}", seed=seed, temperature=temperature) for seed in range(12))):
        assert sample.logprobs.dtype == np.float32
        assert sample.token_ids.dtype == np.int32
        expected = logprobs(model, PROMPT, sample.token_ids.tolist(), temperature=temperature or 1.0)
        np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE_NATS, rtol=0)


def test_top_p_draws_within_the_nucleus_and_leaves_samples_beside_it_alone(engine: Engine, model_path: Path) -> None:
    from tests.tiny_model import greedy, load, nucleus_logprobs

    model = load(model_path)
    alone = draw(engine, *(request(f"s{seed}", seed=seed) for seed in range(4)))
    cut = [request(f"p{seed}", seed=seed, top_p=0.7) for seed in range(12)]
    almost_greedy = request("g", top_p=1e-6, seed=3)
    *beside, likeliest = draw(engine, *(request(f"s{seed}", seed=seed) for seed in range(4)), *cut, almost_greedy)
    for sample, with_others in zip(alone, beside, strict=False):
        np.testing.assert_array_equal(sample.token_ids, with_others.token_ids)
        np.testing.assert_allclose(sample.logprobs, with_others.logprobs, atol=TOLERANCE_NATS)
    for sample in beside[4:]:
        expected = nucleus_logprobs(model, PROMPT, sample.token_ids.tolist(), top_p=0.7)
        np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE_NATS, rtol=0)
    assert len({sample.token_ids.tobytes() for sample in beside[4:]}) > 6
    assert likeliest.token_ids.tolist() == greedy(model, PROMPT, max_tokens=24)
    np.testing.assert_allclose(likeliest.logprobs, 0, atol=TOLERANCE_NATS)


def test_samples_of_one_prompt_differ_whatever_the_model_folder_recommends(engine: Engine) -> None:
    samples = draw(engine, *(request(f"s{seed}", seed=seed) for seed in range(CAPACITY)))
    assert len({sample.token_ids.tobytes() for sample in samples}) == CAPACITY


def test_a_seed_reproduces_its_sample_in_any_company(engine: Engine) -> None:
    [alone] = draw(engine, request("alone", seed=7))
    crowd = draw(engine, *(request(f"s{seed}", seed=seed) for seed in range(10)))
    np.testing.assert_array_equal(crowd[7].token_ids, alone.token_ids)
    np.testing.assert_allclose(crowd[7].logprobs, alone.logprobs, atol=TOLERANCE_NATS)


def test_greedy_completions_equal_plain_forward_passes_under_each_version(engine: Engine, model_path: Path) -> None:
    from tests.tiny_model import greedy, load, perturbed, snapshot

    model, seen = load(model_path), set()
    for number in range(3):
        if number:
            changed = snapshot(perturbed(model, seed=number), number)
            engine.load_weights(changed.manifest, changed.buffer, recompute_kv=False)
        [sample] = draw(engine, request("greedy", temperature=0))
        assert sample.token_ids.tolist() == greedy(model, PROMPT, max_tokens=24)
        assert sample.spans == (
            Span(version=PolicyVersion(lineage="a", number=number), start=0, end=len(sample.token_ids)),
        )
        seen.add(sample.token_ids.tobytes())
    assert len(seen) == 3


def test_stopping_keeps_the_end_token_and_length_is_exact(engine: Engine) -> None:
    from tests.tiny_model import EOS

    samples = draw(engine, *(request(f"s{seed}", seed=seed, max_tokens=40) for seed in range(96)))
    assert {sample.finish_reason for sample in samples} == {FinishReason.STOP, FinishReason.LENGTH}
    for sample in samples:
        assert len(sample.token_ids) == len(sample.logprobs)
        assert EOS not in sample.token_ids[:-1]
        assert (sample.token_ids[-1] == EOS) == (sample.finish_reason is FinishReason.STOP)
        assert len(sample.token_ids) == 40 or sample.finish_reason is FinishReason.STOP


def test_an_end_token_at_max_tokens_is_a_stop(engine: Engine) -> None:
    samples = draw(engine, *(request(f"s{seed}", seed=seed, max_tokens=40) for seed in range(64)))
    seed, stopped = next((i, s) for i, s in enumerate(samples) if s.finish_reason is FinishReason.STOP)
    [again] = draw(engine, request("again", seed=seed, max_tokens=len(stopped.token_ids)))
    assert again.finish_reason is FinishReason.STOP


def test_a_probe_finds_a_stale_tensor_that_the_digest_cannot(
    engine: Engine, model_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from services.coordinator.weights.prober import PROBE_TOKENS, TOLERANCE_NATS, ProbeAnswer, difference_nats
    from services.rollout.adapters import transformers_engine
    from tests.tiny_model import load, perturbed, snapshot

    modules = [transformers_engine]
    if engine.name.startswith("vllm"):
        from services.rollout.adapters import vllm_extension

        modules = [vllm_extension]
    unpack = modules[0].named_tensors

    def probe() -> ProbeAnswer:
        [sample] = draw(engine, request("probe", temperature=0, max_tokens=PROBE_TOKENS))
        return ProbeAnswer(token_ids=sample.token_ids, logprobs=sample.logprobs)

    changed = snapshot(perturbed(load(model_path), seed=1, scale=0.02), 1)
    answers = []
    for lost in ("model.embed_tokens.weight", ""):
        stays = lambda named, lost=lost: ((name, tensor) for name, tensor in unpack(*named) if name != lost)  # noqa: E731
        monkeypatch.setattr(modules[0], "named_tensors", lambda *named, stays=stays: stays(named))
        engine.load_weights(changed.manifest, changed.buffer, recompute_kv=False)
        answers.append(probe())
    again = probe()
    assert difference_nats(answers[0], answers[1]) > TOLERANCE_NATS["float32"]
    assert difference_nats(answers[1], again) < 0.1 * TOLERANCE_NATS["float32"]


@pytest.mark.parametrize("recompute_kv", [False, True])
def test_spans_are_exact_to_the_token_when_weights_switch_mid_generation(
    engine: Engine, model_path: Path, recompute_kv: bool
) -> None:
    from tests.tiny_model import load, logprobs, perturbed, snapshot

    old, new = load(model_path), perturbed(load(model_path), seed=1)
    engine.add(long := request("s", temperature=1.0, max_tokens=60, seed=_seed_that_does_not_stop(engine, 60)))
    until_tokens(engine, "s", 20)
    changed, preemptions = snapshot(new, 1), engine.preemptions
    engine.load_weights(changed.manifest, changed.buffer, recompute_kv=recompute_kv)
    switched = len(engine.running["s"].token_ids)
    assert switched == 20 + _in_flight(engine)
    sample = finish(engine)["s"]
    assert engine.preemptions == preemptions  # the cache had room
    tokens = sample.token_ids.tolist()
    assert sample.spans == (
        Span(version=PolicyVersion(lineage="a", number=0), start=0, end=switched),
        Span(version=PolicyVersion(lineage="a", number=1), start=switched, end=len(tokens)),
    )
    before, after = logprobs(old, PROMPT, tokens), logprobs(new, PROMPT, tokens)
    np.testing.assert_allclose(sample.logprobs[:switched], before[:switched], atol=TOLERANCE_NATS, rtol=0)
    assert np.abs(sample.logprobs[switched:] - before[switched:]).max() > 0.1
    if recompute_kv:
        np.testing.assert_allclose(sample.logprobs[switched:], after[switched:], atol=TOLERANCE_NATS, rtol=0)
    assert long.max_tokens >= len(tokens)


def test_no_prefix_of_an_older_version_is_reused(engine: Engine, model_path: Path) -> None:
    from tests.tiny_model import load, logprobs, perturbed, snapshot

    draw(engine, request("warm", prompt=LONG_PROMPT, max_tokens=4))
    engine.add(request("added before the switch", prompt=LONG_PROMPT, max_tokens=4))
    new = perturbed(load(model_path), seed=2, scale=0.2)
    changed = snapshot(new, 1)
    engine.load_weights(changed.manifest, changed.buffer, recompute_kv=False)
    engine.add(request("added after the switch", prompt=LONG_PROMPT, max_tokens=4, seed=1))
    for sample in finish(engine).values():
        expected = logprobs(new, LONG_PROMPT, sample.token_ids.tolist())
        np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE_NATS, rtol=0)
        assert [span.version.number for span in sample.spans] == [1]


@pytest.mark.parametrize("inflight", ["finish", "abort"])
async def test_no_sample_spans_two_versions_when_running_ones_finish_or_are_aborted_first(
    engine: Engine, model_path: Path, inflight: InFlight
) -> None:
    from tests.tiny_model import load, logprobs, perturbed, snapshot

    first, new = snapshot(load(model_path), 0), perturbed(load(model_path), seed=2, scale=0.2)
    changed, seeds = snapshot(new, 1), range(6)
    loop = EngineLoop(_Unclosed(engine), max_samples=64)
    loop.start()
    try:
        await loop.load_weights(first.manifest, first.buffer, inflight=inflight)
        old = loop.generate([request(f"old{seed}", seed=seed, prompt=LONG_PROMPT, max_tokens=40) for seed in seeds])
        before, started = engine.generated_tokens, asyncio.ensure_future(_finished(old))
        await assert_eventually(lambda: engine.generated_tokens > before)
        push = asyncio.ensure_future(
            loop.load_weights(changed.manifest, changed.buffer, inflight=inflight, finish_s=60.0)
        )
        await asyncio.sleep(0)
        newer = [request(f"new{seed}", seed=seed, prompt=LONG_PROMPT, max_tokens=8) for seed in seeds]
        later = await _finished(loop.generate(newer))
        await push
        ended = await started
        assert {span.version.number for sample in ended for span in sample.spans} == {0}
        assert (FinishReason.ABORT in {sample.finish_reason for sample in ended}) == (inflight == "abort")
        for sample in later:
            assert [span.version.number for span in sample.spans] == [1]
            expected = logprobs(new, LONG_PROMPT, sample.token_ids.tolist())
            np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE_NATS, rtol=0)
    finally:
        loop.close()


def test_requests_that_wait_for_their_prefill_find_no_older_prefix(engine: Engine, model_path: Path) -> None:
    from tests.tiny_model import load, logprobs, perturbed, snapshot

    warm = {f"warm{index}": (3 + index, *LONG_PROMPT) for index in range(8)}
    draw(engine, *(request(name, prompt=prompt, max_tokens=2) for name, prompt in warm.items()))
    # More prompt tokens than one step takes, so that the warmed ones have not started when the weights switch.
    cold = {f"cold{index}": (20 + index, *LONG_PROMPT) for index in range(CAPACITY - 8)}
    for name, prompt in (cold | warm).items():
        engine.add(request(name, prompt=prompt, max_tokens=4))
    engine.step()
    new = perturbed(load(model_path), seed=2, scale=0.2)
    changed = snapshot(new, 1)
    engine.load_weights(changed.manifest, changed.buffer, recompute_kv=False)
    unstarted = {name for name, sample in engine.running.items() if not sample.token_ids}
    assert unstarted >= warm.keys() or engine.name.startswith("transformers")  # it starts what fits in one step
    done = finish(engine)
    assert done.keys() == (cold | warm).keys()
    for name in unstarted:
        expected = logprobs(new, (cold | warm)[name], done[name].token_ids.tolist())
        np.testing.assert_allclose(done[name].logprobs, expected, atol=TOLERANCE_NATS, rtol=0)


def test_abort_returns_what_is_there_and_spares_the_others(engine: Engine) -> None:
    seed = _seed_that_does_not_stop(engine, 40)
    for name in ("victim", "other"):
        engine.add(request(name, max_tokens=40, seed=seed))
    until_tokens(engine, "victim", 10)
    [victim] = engine.abort(["victim", "unknown"])
    assert victim.finish_reason is FinishReason.ABORT
    assert len(victim.token_ids) == len(victim.logprobs) == 10 + _in_flight(engine)
    assert victim.spans[-1].end == len(victim.token_ids)
    other = finish(engine)["other"]
    assert other.finish_reason is FinishReason.LENGTH
    np.testing.assert_array_equal(other.token_ids[: len(victim.token_ids)], victim.token_ids)


def test_a_request_aborted_before_its_first_token_is_empty(engine: Engine) -> None:
    engine.add(request("s"))
    [sample] = engine.abort(["s"])
    assert (len(sample.token_ids), sample.spans, sample.finish_reason) == (0, (), FinishReason.ABORT)
    assert not engine.running


def test_more_requests_than_fit_all_finish_with_their_own_prompts(engine: Engine, model_path: Path) -> None:
    from tests.tiny_model import load, logprobs

    model, before = load(model_path), engine.generated_tokens
    prompts = {f"s{index}": (3 + index % 20, *PROMPT[: index % 4], 9) for index in range(3 * CAPACITY)}
    numbered = enumerate(prompts.items())
    samples = draw(engine, *(request(name, prompt=ids, seed=i, max_tokens=5 + i % 30) for i, (name, ids) in numbered))
    for sample in samples:
        expected = logprobs(model, prompts[sample.sample_id], sample.token_ids.tolist())
        np.testing.assert_allclose(sample.logprobs, expected, atol=TOLERANCE_NATS, rtol=0)
    assert engine.generated_tokens - before == sum(len(sample.token_ids) for sample in samples)


def test_a_full_kv_cache_is_seen_and_what_it_puts_back_is_counted_and_finishes(engine: Engine) -> None:
    if engine.kv_use is None:  # a cache that grows is never full
        assert engine.preemptions == 0
        return
    seed = _seed_that_does_not_stop(engine, 40)
    before, most = engine.preemptions, 0.0
    for index in range(CAPACITY):
        engine.add(request(f"s{index}", seed=seed, max_tokens=60))
    while engine.running:
        engine.step()
        most = max(most, engine.kv_use)
    assert 0.9 < most <= 1.0
    assert engine.preemptions > before
    assert engine.kv_use == 0.0


def test_no_more_samples_start_than_the_limit_and_those_that_run_go_on_when_it_falls(engine: Engine) -> None:
    seed = _seed_that_does_not_stop(engine, 40)
    engine.limit = 5
    for index in range(12):
        engine.add(request(f"s{index}", seed=seed, max_tokens=40))
    started = []
    for limit in (5, 5, 2, 2):
        engine.limit = limit
        engine.step()
        started.append(sum(bool(sample.token_ids) for sample in engine.running.values()))
    assert set(started[_in_flight(engine) :]) == {5}
    assert (engine.started, len(engine.running)) == (5, 12)
    assert len(finish(engine)) == 12


async def test_as_many_samples_run_as_the_cache_holds(engine: Engine) -> None:
    if engine.kv_use is None:  # a cache that grows is never full
        return
    put_back, most = [], Concurrency(most=CAPACITY)
    for concurrency in (None, most):
        before = engine.preemptions
        engine.limit = CAPACITY if concurrency is None else concurrency.limit
        loop = EngineLoop(_Unclosed(engine), max_samples=2 * CAPACITY, concurrency=concurrency)
        loop.serve_own(PolicyVersion(lineage="a", number=0))
        loop.start()
        wanted = [request(f"s{index}", seed=index, max_tokens=100) for index in range(2 * CAPACITY)]
        assert len(await _finished(loop.generate(wanted))) == len(wanted)
        loop.close()
        put_back.append(engine.preemptions - before)
    assert 2 * put_back[1] < put_back[0]
    assert most.take_largest() > 16


def _in_flight(engine: Engine) -> int:
    """Tokens that a running sample gets after `step` has returned: 1 where the next step is computed already."""
    core = getattr(engine, "_core", None)
    return 0 if core is None or core.engine_core.batch_queue is None else 1


class _Unclosed:
    """An engine for a loop that is closed before it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def close(self) -> None:
        pass


async def _finished(events: AsyncGenerator[Event]) -> list[FinishedSample]:
    return [event async for event in events if isinstance(event, FinishedSample)]


def _seed_that_does_not_stop(engine: Engine, tokens: int) -> int:
    samples = draw(engine, *(request(f"probe{seed}", seed=seed, max_tokens=tokens) for seed in range(32)))
    return next(i for i, sample in enumerate(samples) if sample.finish_reason is FinishReason.LENGTH)
