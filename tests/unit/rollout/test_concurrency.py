"""How many samples run at once: what the cache will hold, within bounds, learnt from what was put back."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.simulated.paged_engine import PagedEngine, Simulated
from services.rollout.cache_load import CacheLoad, Sequences
from services.rollout.concurrency import FIRST_CEILING, FIRST_SAMPLES, LOWEST_CEILING, PREEMPTED_SHARE, Concurrency
from services.rollout.engine import FinishedSample, FinishReason
from services.rollout.pacer import LOOK_S, Pacer

MOST, LONGEST = 200, 100


def sequences(*generated: int, prompt: int = 10) -> Sequences:
    tokens = np.array(generated, np.int64)
    return Sequences(
        held_tokens=tokens + float(prompt), generated_tokens=tokens, max_tokens=np.full(len(tokens), LONGEST)
    )


def load(running: Sequences, *, cache_tokens: float, waiting: Sequences | None = None) -> CacheLoad:
    held = float(running.held_tokens.sum())
    return CacheLoad(
        use=min(1.0, held / cache_tokens),
        computed_tokens=held,
        running=running,
        waiting=sequences() if waiting is None else waiting,
    )


def knowing(*lengths: int, times: int = 100) -> Concurrency:
    """After completions of these lengths, so many that the first guess is forgotten; with the ceiling at its start."""
    concurrency = Concurrency(most_samples=MOST, most_tokens=LONGEST)
    for _ in range(-(-512 // len(lengths)) if times == 100 else times):
        for length in lengths:
            concurrency.ended(length)
    concurrency.ceiling = 1.0
    return concurrency


def test_samples_that_start_together_get_the_room_of_their_ends() -> None:
    # All completions have 40 tokens, prompts 10: 8 samples end with 50 each in a cache of 400.
    assert knowing(40).limit(load(sequences(0), cache_tokens=400), preemptions=0) == 8


def test_samples_of_all_ages_need_no_reserve() -> None:
    # One of every age from 0 to 39 holds 10 + 19.5 on average: 40 samples are 1180 tokens now, and never more.
    aged = sequences(*range(40))
    assert knowing(40).limit(load(aged, cache_tokens=1180), preemptions=0) == 40
    tight = knowing(40)
    tight.ceiling = 0.9
    assert tight.limit(load(aged, cache_tokens=1180), preemptions=0) < 40  # none starts until some have ended
    assert knowing(40).limit(load(aged, cache_tokens=1180 + 100), preemptions=0) > 41


def test_what_waits_is_counted_as_it_is() -> None:
    # A sample that was put back with 30 tokens needs 40 now and 50 in the end; a fresh one 50 in the end.
    running = sequences(39)
    put_back = sequences(30, prompt=10)
    assert knowing(40).limit(load(running, cache_tokens=89, waiting=put_back), preemptions=0) == 2
    assert knowing(40).limit(load(running, cache_tokens=80, waiting=put_back), preemptions=0) == 1


def test_short_completions_that_end_first_do_not_make_all_look_short() -> None:
    # 10 of 100 that started together have ended at 5 tokens, 90 go on at 20: of these nobody has ended.
    few = Concurrency(most_samples=MOST, most_tokens=LONGEST)
    for _ in range(10):
        few.ended(5)
    together = load(sequences(*[20] * 90), cache_tokens=90 * 35.0)
    assert few.limit(together, preemptions=0) < 90
    assert knowing(5, 25).limit(together, preemptions=0) >= 90  # where they are known to end soon


def test_before_the_cache_was_seen_a_group_runs() -> None:
    fresh = Concurrency(most_samples=MOST, most_tokens=LONGEST)
    assert fresh.limit(load(sequences(), cache_tokens=400), preemptions=0) == FIRST_SAMPLES
    assert Concurrency(most_samples=4, most_tokens=9).limit(load(sequences(), cache_tokens=400), preemptions=0) == 4


def test_a_change_of_weights_that_empties_the_cache_is_neither_a_full_cache_nor_a_new_price() -> None:
    concurrency = knowing(40)
    before = concurrency.limit(load(sequences(0), cache_tokens=400), preemptions=7)
    ceiling = concurrency.ceiling
    emptied = CacheLoad(use=0.0, computed_tokens=0.0, running=sequences(), waiting=sequences(*[0] * 20))
    assert concurrency.limit(emptied, preemptions=7) == before
    assert concurrency.ceiling == ceiling


def test_the_ceiling_falls_with_preemptions_recovers_with_completions_and_keeps_its_band() -> None:
    concurrency, seen = Concurrency(most_samples=MOST, most_tokens=LONGEST), load(sequences(5), cache_tokens=400)
    concurrency.limit(seen, preemptions=5)  # before this controller
    concurrency.limit(seen, preemptions=25)
    low = concurrency.ceiling
    assert LOWEST_CEILING < low < FIRST_CEILING
    for _ in range(round(20 / PREEMPTED_SHARE)):
        concurrency.ended(40)
    assert concurrency.ceiling == pytest.approx(FIRST_CEILING, abs=1e-3)
    concurrency.limit(seen, preemptions=10**6)
    assert concurrency.ceiling == LOWEST_CEILING


@settings(max_examples=60, deadline=None)
@given(
    running=st.lists(st.integers(0, LONGEST), max_size=250),
    waiting=st.lists(st.integers(0, LONGEST), max_size=64),
    cache=st.floats(1.0, 1e5),
    ended=st.lists(st.integers(0, 2 * LONGEST), max_size=40),
    preemptions=st.integers(0, 10**6),
)
def test_the_limit_is_bounded_and_grows_with_the_cache(
    running: list[int], waiting: list[int], cache: float, ended: list[int], preemptions: int
) -> None:
    limits = []
    for cache_tokens in (cache, 2 * cache):
        concurrency = Concurrency(most_samples=MOST, most_tokens=LONGEST)
        for tokens in ended:
            concurrency.ended(tokens)
        seen = load(sequences(*running), cache_tokens=cache_tokens, waiting=sequences(*waiting))
        seen = CacheLoad(
            use=seen.computed_tokens / cache_tokens,
            computed_tokens=seen.computed_tokens,
            running=seen.running,
            waiting=seen.waiting,
        )
        concurrency.limit(seen, preemptions=0)
        limits.append(concurrency.limit(seen, preemptions=preemptions))
        assert LOWEST_CEILING <= concurrency.ceiling <= 1.0
    assert 1 <= limits[0] <= limits[1] <= MOST


class Scripted:
    """An engine that is always loaded alike."""

    limit, preemptions = 16, 0

    def __init__(self, seen: CacheLoad | None) -> None:
        self.seen, self.looks = seen, 0

    def cache_load(self) -> CacheLoad | None:
        self.looks += 1
        return self.seen


def test_a_pacer_looks_now_and_then_and_tells_the_largest_limit_once() -> None:
    now = [0.0]
    pacer, engine = Pacer(knowing(40), now_s=lambda: now[0]), Scripted(load(sequences(0), cache_tokens=400))
    assert pacer.take_limit() is None
    pacer.after_step(engine, [])
    now[0] = LOOK_S / 2
    pacer.after_step(engine, [finished(40), finished(40, FinishReason.ABORT)])
    assert (engine.looks, engine.limit) == (1, 8)
    now[0], engine.seen = 1.0, load(sequences(0), cache_tokens=200)
    pacer.after_step(engine, [])
    assert (engine.looks, engine.limit) == (2, 4)
    assert (pacer.take_limit(), pacer.take_limit()) == (8, 4)


def test_an_engine_whose_cache_grows_keeps_its_limit() -> None:
    engine, pacer = Scripted(None), Pacer(knowing(40), now_s=lambda: 0.0)
    pacer.after_step(engine, [finished(40)])
    assert (engine.limit, pacer.take_limit()) == (16, None)


def finished(tokens: int, reason: FinishReason = FinishReason.STOP) -> FinishedSample:
    ids = np.zeros(tokens, np.int32)
    return FinishedSample(sample_id="s", token_ids=ids, logprobs=ids.astype(np.float32), spans=(), finish_reason=reason)


def test_a_cache_too_small_by_4_is_used_without_thrash() -> None:
    lengths = np.clip(np.exp(np.random.default_rng(0).normal(4.0, 0.7, 320)), 1, 300).astype(int)
    samples = [
        Simulated(group=place // 16, prompt_tokens=32, tokens=int(tokens), max_tokens=300)
        for place, tokens in enumerate(lengths)
    ]
    blocks = round(128 * float(lengths.mean()) / 4 / 16)
    paced, all_at_once = PagedEngine(blocks=blocks, capacity=128), PagedEngine(blocks=blocks, capacity=128)
    paced.limit = FIRST_SAMPLES
    pacer = Pacer(Concurrency(most_samples=128, most_tokens=300), now_s=lambda: paced.now_s)
    for engine in (paced, all_at_once):
        for sample in samples:
            sample.generated = 0
            engine.add(sample)
        while engine.running or engine.waiting:
            ended = engine.step()
            if engine is paced:
                pacer.after_step(engine, ended)
    assert 4 * paced.preemptions < all_at_once.preemptions
    assert paced.now_s < 1.1 * all_at_once.now_s
