"""The contract of a rollout server that holds weights: samples, their facts, refusals, and callers that leave."""

import asyncio
from typing import Any

import grpc
import numpy as np

from sluice.rpc.arrays import pack_ids, unpack_floats, unpack_ids
from sluice.testing.conformance.rollout_server import PROMPT, RolloutServer, running
from sluice.testing.conformance.suite import NotApplicable, Suite, Violation, require
from sluice.testing.conformance.transport import CALL_TIMEOUT_S, check_oversized, check_refusal
from sluice.testing.conformance.weight_checks import SERVICE
from sluice.v1 import common_pb2, rollout_pb2

STOP, LENGTH, ABORT = (
    common_pb2.FINISH_REASON_STOP,
    common_pb2.FINISH_REASON_LENGTH,
    common_pb2.FINISH_REASON_ABORT,
)

LARGEST_LOGPROB = 1e-4
"""Tolerance above 0 for rounding, in nats."""

_FREE_WITHIN_S = 10.0
_DEADLINES_S = (0.05, 0.2, 1.0)
"""Deadlines to try in turn, until one is long enough for a sample to run."""
_MANY = 16
_SOME_TOKENS = 24

SUITE: Suite[RolloutServer] = Suite()


@SUITE.check
async def every_sample_comes_once(server: RolloutServer) -> None:
    """one message for each sample that was asked for, with its index and its seed"""
    samples = await server.generate(server.request(n=_MANY))
    seen = sorted((sample.index, sample.seed) for sample in samples)
    require(seen == [(index, 100 + index) for index in range(_MANY)], f"(index, seed) of the samples: {seen}")


@SUITE.check
async def missing_samples_alone_can_be_drawn(server: RolloutServer) -> None:
    """a request for samples 3 and 11 of a group brings samples 3 and 11"""
    wanted = [rollout_pb2.SampleSpec(index=index, seed=index) for index in (11, 3)]
    samples = await server.generate(server.request(samples=wanted))
    require(sorted(sample.index for sample in samples) == [3, 11], f"samples {[s.index for s in samples]}")


@SUITE.check
async def a_token_has_one_logprob(server: RolloutServer) -> None:
    """token_ids are int32, logprobs float32, packed little-endian; a sample has a logprob a token and at least one token"""
    for sample in await _some(server):
        ids, logprobs = unpack_ids(sample.token_ids), unpack_floats(sample.logprobs)
        require(len(ids) == len(logprobs) > 0, f"{len(ids)} tokens, {len(logprobs)} logprobs")
        require(bool((ids >= 0).all()), f"token ids {ids}")


@SUITE.check
async def logprobs_are_logarithms_of_probabilities(server: RolloutServer) -> None:
    """every logprob is finite and <= 0"""
    for sample in await _some(server):
        logprobs = unpack_floats(sample.logprobs)
        holds = np.isfinite(logprobs).all() and (logprobs <= LARGEST_LOGPROB).all()
        require(bool(holds), f"logprobs {logprobs}")


@SUITE.check
async def spans_cover_the_tokens(server: RolloutServer) -> None:
    """version spans cover [0, T) without gaps, oldest first, and the last is of the version that GetInfo names"""
    held = (await server.info()).version
    for sample in await _some(server):
        edges = [0, *(span.end_token for span in sample.spans)]
        starts = [span.start_token for span in sample.spans]
        whole = starts == edges[:-1] and edges == sorted(set(edges)) and edges[-1] == len(unpack_ids(sample.token_ids))
        require(whole, f"{len(unpack_ids(sample.token_ids))} tokens, spans {[*zip(starts, edges[1:], strict=True)]}")
        require(sample.spans[-1].version == held, f"{sample.spans[-1].version}, GetInfo has {held}")


@SUITE.check
async def samples_end_for_a_known_reason(server: RolloutServer) -> None:
    """finish_reason is STOP or LENGTH, and LENGTH means exactly max_tokens tokens"""
    for sample in await _some(server):
        require(sample.finish_reason in (STOP, LENGTH), f"finish_reason {sample.finish_reason}")
        tokens = len(unpack_ids(sample.token_ids))
        require(
            sample.finish_reason == STOP or tokens == _SOME_TOKENS, f"LENGTH after {tokens} of {_SOME_TOKENS} tokens"
        )


@SUITE.check
async def max_tokens_is_kept(server: RolloutServer) -> None:
    """no sample has more than max_tokens tokens: with 1, exactly one"""
    for sample in await server.generate(server.request(max_tokens=1)):
        tokens = len(unpack_ids(sample.token_ids))
        require(tokens == 1, f"{tokens} tokens with max_tokens 1")


@SUITE.check
async def greedy_is_served(server: RolloutServer) -> None:
    """temperature 0, which evaluations use, brings samples too"""
    greedy = common_pb2.SamplingParams(temperature=0.0, top_p=1.0, top_k=-1, max_tokens=4)
    samples = await server.generate(server.request(n=2, sampling=greedy))
    require(len(samples) == 2, f"{len(samples)} samples of 2")


@SUITE.check
async def an_evaluation_may_lower_top_p(server: RolloutServer) -> None:
    """top_p 0.7 of an evaluation brings samples whose logprobs are finite and <= 0; top_p 0 and 1.5 are INVALID_ARGUMENT"""

    def sampling(top_p: float) -> common_pb2.SamplingParams:
        return common_pb2.SamplingParams(temperature=1.0, top_p=top_p, top_k=-1, max_tokens=_SOME_TOKENS)

    for sample in await server.generate(server.request(n=2, sampling=sampling(0.7), evaluation=True)):
        logprobs = unpack_floats(sample.logprobs)
        require(bool(np.isfinite(logprobs).all() and (logprobs <= LARGEST_LOGPROB).all()), f"logprobs {logprobs}")
    for top_p in (0.0, 1.5):
        call = server.generate(server.request(sampling=sampling(top_p), evaluation=True))
        await check_refusal(call, grpc.StatusCode.INVALID_ARGUMENT, f"top_p {top_p:g} of an evaluation")


@SUITE.check
async def generated_tokens_are_counted(server: RolloutServer) -> None:
    """GetInfo's generated_tokens grows by the tokens of a request, at least"""
    before = (await server.info()).generated_tokens
    tokens = sum(len(unpack_ids(sample.token_ids)) for sample in await _some(server))
    grown = (await server.info()).generated_tokens - before
    require(grown >= tokens, f"grew by {grown} for {tokens} tokens")


@SUITE.check
async def requests_that_cannot_be_served_are_refused(server: RolloutServer) -> None:
    """a torn or empty prompt, no request_id, no sample, an index twice, a negative seed, max_tokens 0 or beyond the
    context, or sampling that is not neutral is INVALID_ARGUMENT, with a message"""
    longest = (await server.info()).max_model_len
    spec = rollout_pb2.SampleSpec
    sampling = common_pb2.SamplingParams
    bad: dict[str, dict[str, Any]] = {
        "a torn prompt": {"prompt_token_ids": pack_ids([*PROMPT])[:-1]},
        "an empty prompt": {"prompt_token_ids": b""},
        "a negative token id": {"prompt_token_ids": pack_ids([-1])},
        "no request_id": {"request_id": ""},
        "no sample": {"samples": []},
        "an index twice": {"samples": [spec(index=1, seed=1), spec(index=1, seed=2)]},
        "a negative seed": {"samples": [spec(index=0, seed=-1)]},
        "max_tokens 0": {"sampling": sampling(temperature=1, top_p=1, top_k=-1, max_tokens=0)},
        "max_tokens beyond the context": {"sampling": sampling(temperature=1, top_p=1, top_k=-1, max_tokens=longest)},
        "top_p 0.9": {"sampling": sampling(temperature=1, top_p=0.9, top_k=-1, max_tokens=4)},
        "top_k 10": {"sampling": sampling(temperature=1, top_p=1, top_k=10, max_tokens=4)},
        "a negative temperature": {"sampling": sampling(temperature=-1, top_p=1, top_k=-1, max_tokens=4)},
    }
    taken: list[str] = []
    for what, change in bad.items():
        try:
            await check_refusal(server.generate(server.request(**change)), grpc.StatusCode.INVALID_ARGUMENT, what)
        except Violation as violation:
            taken.append(str(violation))
    require(not taken, "; ".join(taken))


@SUITE.check
async def another_version_is_refused(server: RolloutServer) -> None:
    """a required_version other than the server's is FAILED_PRECONDITION; the server's own version is served"""
    held = (await server.info()).version
    other = common_pb2.PolicyVersion(lineage=held.lineage, number=held.number + 1)
    call = server.generate(server.request(required_version=other))
    await check_refusal(call, grpc.StatusCode.FAILED_PRECONDITION, f"version {other.number}")
    await server.generate(server.request(required_version=held))


@SUITE.check
async def an_aborted_request_ends(server: RolloutServer) -> None:
    """Abort counts the request; its stream ends with every sample once, and the running samples end as ABORT"""
    request = await server.long_request()
    async with running(lambda: server.generate(request)) as stream:
        aborted = 0
        while not aborted and not stream.done():
            aborted = (await server.stub.Abort(_abort(request.request_id), timeout=CALL_TIMEOUT_S)).aborted
        samples = await stream
    require(aborted == 1, f"Abort of a running request says {aborted}")
    require(len(samples) == len(request.samples), f"{len(samples)} samples of {len(request.samples)}")
    reasons = {sample.finish_reason for sample in samples}
    require(ABORT in reasons and reasons <= {STOP, LENGTH, ABORT}, f"finish reasons {sorted(reasons)}")


@SUITE.check
async def aborting_what_does_not_run_is_no_error(server: RolloutServer) -> None:
    """Abort of an unknown request_id says 0"""
    aborted = (await server.stub.Abort(_abort("conformance-unknown"), timeout=CALL_TIMEOUT_S)).aborted
    require(aborted == 0, f"Abort says {aborted}")


@SUITE.check
async def a_caller_that_cancels_frees_its_slots(server: RolloutServer) -> None:
    """after a cancelled Generate no sample of that request runs on, and its request_id can be used again"""
    request = await server.long_request()
    async with running(lambda: server.generate(request)) as stream:
        await server.until_running(stream)
    await server.until_idle(within_s=_FREE_WITHIN_S)
    await server.generate(server.request(request_id=request.request_id))


@SUITE.check
async def a_deadline_that_passes_frees_its_slots(server: RolloutServer) -> None:
    """after a Generate whose deadline has passed no sample of that request runs on"""
    for deadline_s in _DEADLINES_S:
        if await _passed_while_running(server, deadline_s):
            break
    await server.until_idle(within_s=_FREE_WITHIN_S)


async def _passed_while_running(server: RolloutServer, deadline_s: float) -> bool:
    request = await server.long_request()
    async with running(lambda: server.generate(request, timeout_s=deadline_s)) as stream:
        try:
            await server.until_running(stream)
        except Violation:
            return (
                False  # no sample was seen running: the deadline is too short for this machine, or the server is fast
            )
        await asyncio.wait([stream])
    return True


@SUITE.check
async def a_message_over_the_limit_is_refused(server: RolloutServer) -> None:
    """a message over 256 MiB is RESOURCE_EXHAUSTED, and the next request is served"""
    await check_oversized(server.channel, f"/{SERVICE}/Generate")
    await server.generate(server.request())


@SUITE.check
async def a_drained_server_takes_no_work(server: RolloutServer) -> None:
    """Drain returns when nothing runs; after Drain, Generate is FAILED_PRECONDITION"""
    if not server.drain:
        raise NotApplicable("it would take no more work: give --drain for one that may be ended")
    drain = rollout_pb2.RolloutServiceDrainRequest(timeout_s=1.0)
    aborted = (await server.stub.Drain(drain, timeout=CALL_TIMEOUT_S)).aborted
    require(aborted == 0, f"{aborted} requests aborted, none was running")
    await check_refusal(server.generate(server.request()), grpc.StatusCode.FAILED_PRECONDITION, "Generate")


async def _some(server: RolloutServer) -> list[common_pb2.Sample]:
    samples = await server.generate(server.request(n=_MANY, max_tokens=_SOME_TOKENS))
    require(len(samples) == _MANY, f"{len(samples)} samples of {_MANY}")
    return samples


def _abort(request_id: str) -> rollout_pb2.AbortRequest:
    return rollout_pb2.AbortRequest(request_ids=[request_id])
